"""Evaluate `pocket:`: does it show what it is told, is that of use, did it learn images by heart?

    synclr captions -p cifar -n 2560 && synclr render -p cifar -o few
    synclr render captions -p cifar --set render.engine.guidance=1.5 -o flow
    python tools/pocket/evaluate.py pocket.safetensors --train TRAIN --test TEST --out FOLDER
        --images flow=flow few=few [procedural=FOLDER]

- **classes**: a CNN trained on the real images says what the generated ones show, for captions as
  trained on and for nouns never trained on; its own accuracy on real test images is the ceiling.
- **colours, grounds**: `colours.describe` says what the pixels have, as far as it says anything.
- **steps, guidance**: the same CNN's classes, and the Frechet distance between generated and real
  test images in its last 128 features; of the distilled weights ("few") too, if there are.
- **diversity**: the mean distance between two images of one caption, in pixels and in features.
- **use**: the same CNN trained on the images of a folder alone (and on 10,000 of the sentences in
  `--texts`), graded on real test images, beside one trained on as many real ones.
- **memory**: each image of the first folder with its nearest training image over the whole
  training set and its mirror, by pixels, as a share of the mean distance to the 50 nearest; beside
  that of real test images. Copies would lie far below what real images show.

Writes FOLDER/report.json, FOLDER/sheet.png (rows: classes; guidance rising by column groups, few
steps last) and FOLDER/nearest.png (the twelve most suspicious images, each beside its nearest).
What report.json has is not computed again.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import colours
import numpy as np
import pyarrow.parquet as pq
import sentences
import torch
from cnn import CPU, accuracy, by_class, diversity, features, fit, frechet, make_cnn
from PIL import Image
from prepare import read_images
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from synclr_cli.data.manifest import open_dataset
from synclr_cli.learning import runtime
from synclr_cli.render.engines.pocket import weights
from synclr_cli.render.engines.pocket.pipeline import suit
from synclr_cli.render.engines.pocket.text import read_language_model

COLOURS_SAID = ("red", "yellow", "green", "blue", "brown", "black", "white")
STEPS, GUIDANCE = 10, 1.5  # of the flow, where only one is run
FEW_STEPS = 2  # likewise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--images", nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--texts", type=Path, help="texts.safetensors of prepare.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0, 1.5, 2.5, 4.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--few-steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--per-class", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=14, help="of the CNN on real images")
    parser.add_argument("--epochs-of-use", type=int, default=24, help="of the CNNs on fewer")
    parser.add_argument("--seeds", type=int, default=2, help="of these")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out / "report.json")
    real, test = read_images(options.train), read_images(options.test)
    cnn = trained_cnn(options.out / "cnn.safetensors", *real, options.epochs)
    report.add("cnn_on_real_test", lambda: accuracy(cnn, *test))
    of_test = features(cnn, test[0])
    sample_table(report, options, cnn, of_test)
    sets = {
        name: read_rendered(open_dataset(Path(folder), "images").paths())
        for name, _, folder in (entry.partition("=") for entry in options.images)
    }
    if sets:
        first = next(iter(sets.values()))[0]
        nearest = options.out / "nearest.png"
        report.add("memory", lambda: memory(first, real[0], test[0], nearest))
        chosen = np.random.default_rng(0).permutation(len(real[0]))[: len(first)]
        sets["real"] = (real[0][chosen], real[1][chosen], np.arange(len(chosen)))
    if options.texts:
        vectors, kinds = taught_sentences(options.texts, 1000)
        images = Generator(options.weights)(vectors, GUIDANCE)
        sets["taught"] = (images, kinds, np.arange(len(kinds)))
    for name, (images, kinds, captions) in sets.items():
        report.add(f"images_{name}", lambda: quality(cnn, of_test, images, kinds, captions))  # noqa: B023
    for name, (images, kinds, _) in sets.items():
        for seed in range(options.seeds):
            report.add(
                f"cnn_trained_on_{name}_seed_{seed}",
                lambda: use(images, kinds, test, options.epochs_of_use, seed),  # noqa: B023
            )


class Report:
    """What was measured, kept as JSON; what is in the file is not measured again."""

    def __init__(self, path: Path):
        self._path = path
        self._values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def add(self, name: str, measure: Callable[[], object]) -> None:
        """Measure, print and keep a value, unless it is kept already."""
        if name in self._values:
            return
        self._values[name] = measure()
        text = json.dumps(self._values, indent=2)
        self._path.write_text(text + "\n", encoding="utf-8")
        print(name, json.dumps(self._values[name]), flush=True)


def trained_cnn(path: Path, images: np.ndarray, labels: np.ndarray, epochs: int) -> nn.Module:
    """Return the CNN of real images kept at `path`, or train it."""
    cnn = make_cnn()
    if path.exists():
        cnn.load_state_dict(load_file(path))
    else:
        torch.manual_seed(0)
        fit(cnn, images, labels, epochs)
        save_file(cnn.state_dict(), path)
    return cnn


def sample_table(
    report: Report, options: argparse.Namespace, cnn: nn.Module, of_test: np.ndarray
) -> None:
    """Measure every guidance and number of steps on captions of known nouns; draw the sheet."""
    names: list[tuple[str, float | None, list[int]]] = [
        (f"guidance_{guidance:g}", guidance, options.steps) for guidance in options.guidance
    ]
    if options.weights.with_name(weights.FEW_STEPS).exists():
        names.append(("few", None, options.few_steps))
    if all(name in report for name, _, _ in names):
        return
    generator = Generator(options.weights)
    captions, kinds = trained_captions(options.per_class)
    unseen, unseen_kinds = unseen_captions(options.per_class // 3)
    sheet: list[np.ndarray] = []
    for name, guidance, all_steps in names:
        usual = FEW_STEPS if guidance is None else STEPS
        shown = min(all_steps, key=lambda steps: abs(steps - usual))
        row: dict[str, object] = {}
        for steps in all_steps:
            started = time.monotonic()
            images = generator(captions, guidance, steps)
            row[f"steps_{steps}"] = {
                "classes": accuracy(cnn, images, kinds),
                "frechet": frechet(features(cnn, images), of_test),
                "images_per_s": round(len(images) / (time.monotonic() - started), 2),
            }
            if steps == shown:
                sheet.append(images)
                row["by_class"] = by_class(cnn, images, kinds)
        generated = generator(unseen, guidance, shown)
        row["classes_unseen_nouns"] = accuracy(cnn, generated, unseen_kinds)
        row |= colour_scores(generator, guidance, shown)
        report.add(name, lambda: row)  # noqa: B023
    contact_sheet(sheet, options.per_class, options.out / "sheet.png")


def quality(
    cnn: nn.Module,
    of_test: np.ndarray,
    images: np.ndarray,
    kinds: np.ndarray,
    captions: np.ndarray,
) -> dict[str, float]:
    """Return what the CNN of real images says of a folder's images."""
    seen = features(cnn, images)
    row = {
        "count": len(images),
        "classes": accuracy(cnn, images, kinds),
        "frechet": frechet(seen, of_test),
    }
    if len(np.unique(captions)) < len(captions):
        row["diversity_pixels"] = diversity(images, captions) / images[0].size ** 0.5  # levels
        row["diversity_features"] = diversity(seen, captions)
    return row


def use(
    images: np.ndarray,
    kinds: np.ndarray,
    test: tuple[np.ndarray, np.ndarray],
    epochs: int,
    seed: int,
) -> float:
    """Return the accuracy on real test images of a CNN trained on these alone."""
    torch.manual_seed(seed)
    learner = make_cnn()
    fit(learner, images, kinds, epochs, batch=50)
    return accuracy(learner, *test)


def read_rendered(parts: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images [N, 32, 32, 3] uint8 that `synclr render` made of our nouns, classes, captions.

    Classes [N] are numbers in `sentences.CLASSES`, captions [N] the rows' caption ids.
    """
    images, kinds, captions = [], [], []
    for part in parts:
        table = pq.read_table(part, columns=["image", "concept", "caption_id"])
        for row in table.to_pylist():
            image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
            images.append(np.asarray(image.resize((32, 32), Image.Resampling.BOX)))
            kind, _, _ = sentences.read(row["concept"])
            kinds.append(sentences.CLASSES.index(kind))
            captions.append(row["caption_id"])
    return np.stack(images), np.array(kinds), np.array(captions)


class Generator:
    """Captions -> images [N, 32, 32, 3] uint8; the i-th row of a call has a seed of its own."""

    def __init__(self, path: Path):
        self._pipe = weights.load(path)
        self._pipe.set_progress_bar_config(disable=True)
        model, tokenizer = read_language_model()
        self._pipe.register_modules(language_model=model, tokenizer=tokenizer)
        for unet in filter(None, (self._pipe.unet, self._pipe.few_steps)):
            suit(unet.to(runtime.dtype("auto", CPU)), CPU)

    def __call__(
        self, captions: list[str] | Tensor, guidance: float | None, steps: int = STEPS
    ) -> np.ndarray:
        """Return one image per caption, or per vector of one [N, 128]."""
        name = "prompt_embeds" if isinstance(captions, Tensor) else "prompt"
        images = []
        for start in range(0, len(captions), 64):
            rows = captions[start : start + 64]
            batch = self._pipe(
                **{name: rows},
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(start + i) for i in range(len(rows))],
                output_type="np",
            ).images
            images.append((batch * 255).round().astype(np.uint8))
        return np.concatenate(images)


def trained_captions(per_class: int) -> tuple[list[str], np.ndarray]:
    """Return captions of known nouns, half with a ground, and their classes."""
    draw = random.Random(0)
    captions, kinds = [], []
    for number, kind in enumerate(sentences.CLASSES):
        for i in range(per_class):
            ground = draw.choice(colours.GROUNDS) if i % 2 else ""
            captions += sentences.captions(kind, "", ground, 1, seed=1000 + i)
            kinds.append(number)
    return captions, np.array(kinds)


def taught_sentences(path: Path, per_class: int) -> tuple[Tensor, np.ndarray]:
    """Return vectors [10 x per_class, 128] of sentences that `train.py` reads, and classes.

    Each class in an order of chance, its sentences over again where they are too few.
    """
    texts = load_file(path)
    draw = torch.Generator().manual_seed(0)
    chosen = []
    for kind in range(len(sentences.CLASSES)):
        own = (texts["attributes"][:, 0] == kind).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=draw)]
        chosen.append(own[torch.arange(per_class) % len(own)])
    rows = torch.cat(chosen)
    return texts["vectors"][rows], texts["attributes"][rows, 0].numpy()


def unseen_captions(per_class: int) -> tuple[list[str], np.ndarray]:
    """Return captions of nouns that were never trained on, and their classes."""
    captions, kinds = [], []
    for number, kind in enumerate(sentences.CLASSES):
        for i in range(per_class):
            noun = sentences.UNSEEN[kind][i % len(sentences.UNSEEN[kind])]
            captions.append(f"A photo of a {noun}.")
            kinds.append(number)
    return captions, np.array(kinds)


def colour_scores(generator: Generator, guidance: float | None, steps: int) -> dict[str, float]:
    """Return how often things and grounds have the colour asked for, where the rule names one."""
    captions: list[str] = []
    things: list[str] = []
    for kind in ("automobile", "truck", "bird", "ship"):
        for colour in COLOURS_SAID:
            captions += sentences.captions(kind, colour, "", 4, seed=2000)
            things += [colour] * (len(captions) - len(things))
    seen, _ = colours.describe(generator(captions, guidance, steps))
    expected = np.array([colours.COLOURS.index(c) for c in things])
    result = {
        "thing_colour_as_asked": float((seen == expected)[seen >= 0].mean()),
        "thing_colour_named": float((seen >= 0).mean()),
    }
    captions = []
    grounds: list[str] = []
    for kind in ("bird", "dog", "horse", "automobile"):
        for ground in colours.GROUNDS:
            captions += sentences.captions(kind, "", ground, 4, seed=3000)
            grounds += [ground] * (len(captions) - len(grounds))
    _, seen = colours.describe(generator(captions, guidance, steps))
    expected = np.array([colours.COLOURS.index(g) for g in grounds])
    return {
        **result,
        "ground_as_asked": float((seen == expected)[seen >= 0].mean()),
        "ground_named": float((seen >= 0).mean()),
    }


def memory(
    generated: np.ndarray, real: np.ndarray, test: np.ndarray, sheet: Path
) -> dict[str, object]:
    """Return how near generated and real test images come to the training set; draw the nearest."""
    base = np.concatenate([real, real[:, :, ::-1]])  # mirrored too
    result: dict[str, object] = {"against": len(base)}
    shares = {}
    for name, images in (("generated", generated), ("real_test", test[: len(generated)])):
        ratio, nearest, distance = _nearest(images, base)
        shares[name] = ratio, nearest
        result[name] = {
            "distance_share_median": float(np.median(ratio)),
            "distance_share_lowest": float(ratio.min()),
            "distance_share_1_percent": float(np.quantile(ratio, 0.01)),
            "pixel_rmse_median": float(np.median(distance)),
            "pixel_rmse_lowest": float(distance.min()),
        }
    ratio, nearest = shares["generated"]
    worst = ratio.argsort()[:12]
    pairs = [np.concatenate([generated[i], base[nearest[i]]], 1) for i in worst]
    rows = [np.concatenate(pairs[i : i + 4], 1) for i in range(0, 12, 4)]
    Image.fromarray(np.concatenate(rows)).resize((8 * 96, 3 * 96), Image.Resampling.NEAREST).save(
        sheet
    )
    return result


def _nearest(images: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for every image: nearest / mean of the 50 nearest, whose, and its RMSE in levels."""
    queries = torch.from_numpy(images.reshape(len(images), -1)).float()
    near: list[Tensor] = []
    size = 10_000
    for start in range(0, len(base), size):
        some = torch.from_numpy(base[start : start + size].reshape(-1, queries.shape[1])).float()
        squared = queries.square().sum(1)[:, None] - 2 * queries @ some.T + some.square().sum(1)
        best = squared.topk(50, largest=False)
        near.append(torch.stack([best.values.double(), (best.indices + start).double()]))
    values, where = torch.cat(near, 2)  # [N, 50 x chunks] both
    order = values.argsort(1)[:, :50]
    distance = values.gather(1, order).clamp(min=0).sqrt()
    first = where.gather(1, order)[:, 0].long().numpy()
    ratio = (distance[:, 0] / distance.mean(1)).numpy()
    return ratio, first, (distance[:, 0] / queries.shape[1] ** 0.5).numpy()


def contact_sheet(
    generated: list[np.ndarray], per_class: int, path: Path, columns: int = 8
) -> None:
    """Draw `columns` images of every class (row), one group of columns per guidance."""
    rows = []
    for kind in range(10):
        groups = [p[kind * per_class : kind * per_class + columns] for p in generated]
        gap = np.full((32, 8, 3), 255, np.uint8)
        cells = [np.concatenate([*group, gap], 1) for group in groups]
        rows.append(np.concatenate(cells, 1))
    whole = Image.fromarray(np.concatenate(rows))
    whole.resize((whole.width * 2, whole.height * 2), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    main()
