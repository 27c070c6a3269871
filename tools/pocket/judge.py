"""Judge `pocket:`: does it paint what it is told, is that of use, did it learn pictures by heart?

    synclr captions -p cifar -n 2560 -o captions.parquet && synclr render -p cifar -o painted
    python tools/pocket/judge.py pocket.safetensors --train TRAIN --test TEST --painted painted
        --out FOLDER [--drawn FOLDER]

- **classes**: a CNN trained on the real pictures says what the painted ones show, for captions as
  trained on and for nouns never trained on; its own accuracy on real test pictures is the ceiling.
- **colours, grounds**: `looks.describe` says what the pixels have, as far as it says anything.
- **steps, guidance**: the same CNN's eye, and the Frechet distance between painted and real test
  pictures in its last 128 features.
- **use**: the same CNN trained on the pictures of `--painted` alone (and of `--drawn`, made by
  `procedural:`, and of 10,000 of the sentences in `--texts`), graded on real test pictures, beside
  one trained on as many real ones as painted.
- **memory**: each picture of `--painted` with its nearest training picture over the whole training
  set and its mirror, by pixels, as a share of the mean distance to the 50 nearest; beside that of
  real test pictures. Copies would lie far below what real pictures show.

Writes FOLDER/report.json, FOLDER/sheet.png (rows: classes; guidance rising by column groups) and
FOLDER/nearest.png (the twelve most suspicious pictures, each beside its nearest).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import looks
import numpy as np
import pyarrow.parquet as pq
import torch
import words
from PIL import Image
from prepare import read_pictures
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from synclr_cli.data import artifacts
from synclr_cli.learning import runtime
from synclr_cli.render.engines.pocket import weights
from synclr_cli.render.engines.pocket.pipeline import suit
from synclr_cli.render.engines.pocket.text import read_language_model

COLOURS_SAID = ("red", "yellow", "green", "blue", "brown", "black", "white")
STEPS = 10
CHOSEN = 1.5  # guidance
CPU = torch.device("cpu")
MEAN, SPREAD = 0.47, 0.25  # of CIFAR-10's values, 0 to 1: what the CNNs are given is standardised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--painted", type=Path, required=True, help="a folder of synclr render")
    parser.add_argument("--drawn", type=Path, help="the same, by procedural:")
    parser.add_argument("--texts", type=Path, help="texts.safetensors of prepare.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.5, 4.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--per-class", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=14, help="of the CNN on real pictures")
    parser.add_argument("--epochs-of-use", type=int, default=24, help="of the CNNs on fewer")
    parser.add_argument("--seeds", type=int, default=2, help="of these")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, object] = {"weights": given.weights.name}

    def note(name: str, found: object) -> None:
        report[name] = found
        text = json.dumps(report, indent=2)
        (given.out / "report.json").write_text(text + "\n", encoding="utf-8")
        print(name, json.dumps(found), flush=True)

    real, labels = read_pictures(given.train)
    real_test, test_labels = read_pictures(given.test)
    known = given.out / "cnn.safetensors"
    judge = make_cnn()
    if known.exists():
        judge.load_state_dict(load_file(known))
    else:
        fit(judge, real, labels, given.epochs)
        save_file(judge.state_dict(), known)
    note("cnn_on_real_test", accuracy(judge, real_test, test_labels))

    painter = Painter(given.weights)
    sheet: list[np.ndarray] = []
    captions, asked = trained_captions(given.per_class)
    unseen, asked_unseen = unseen_captions(given.per_class // 3)
    of_test = features(judge, real_test)
    shown_steps = min(given.steps, key=lambda steps: abs(steps - STEPS))
    for guidance in given.guidance:
        row: dict[str, object] = {}
        for steps in given.steps:
            started = time.monotonic()
            painted = painter(captions, guidance, steps)
            row[f"steps_{steps}"] = {
                "classes": accuracy(judge, painted, asked),
                "frechet": frechet(features(judge, painted), of_test),
                "images_per_s": round(len(painted) / (time.monotonic() - started), 2),
            }
            if steps == shown_steps:
                sheet.append(painted)
                row["by_class"] = by_class(judge, painted, asked)
        row["classes_unseen_nouns"] = accuracy(judge, painter(unseen, guidance), asked_unseen)
        row |= colours(painter, guidance)
        note(f"guidance_{guidance:g}", row)
    contact_sheet(sheet, given.per_class, given.out / "sheet.png")

    painted, kinds = read_rendered(artifacts.open_images(given.painted)[0])
    chosen = np.random.default_rng(0).permutation(len(real))[: len(painted)]
    sets = {"real": (real[chosen], labels[chosen]), "painted": (painted, kinds)}
    if given.drawn:
        sets["drawn"] = read_rendered(artifacts.open_images(given.drawn)[0])
    if given.texts:
        vectors, said = taught_sentences(given.texts, 1000)
        sets["taught"] = (painter(vectors, CHOSEN), said)
    for name, (pictures, shown) in sets.items():
        note(
            f"pictures_{name}",
            {
                "count": len(pictures),
                "classes": accuracy(judge, pictures, shown),
                "frechet": frechet(features(judge, pictures), of_test),
            },
        )
    note("memory", memory(painted, real, real_test, given.out / "nearest.png"))
    for name, (pictures, shown) in sets.items():
        grades = []
        for seed in range(given.seeds):
            torch.manual_seed(seed)
            learner = make_cnn()
            fit(learner, pictures, shown, given.epochs_of_use, batch=50)
            grades.append(accuracy(learner, real_test, test_labels))
        note(f"cnn_trained_on_{name}", {"mean": statistics.mean(grades), "each": grades})


def read_rendered(parts: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures [N, 32, 32, 3] uint8 that `synclr render` made of our nouns, and classes."""
    pictures, kinds = [], []
    for part in parts:
        for row in pq.read_table(part, columns=["image", "concept"]).to_pylist():
            image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
            pictures.append(np.asarray(image.resize((32, 32), Image.Resampling.BOX)))
            kind, _, _ = words.read(row["concept"])
            kinds.append(words.CLASSES.index(kind))
    return np.stack(pictures), np.array(kinds)


class Painter:
    """Captions -> pictures [N, 32, 32, 3] uint8; the i-th call's rows have seeds of their own."""

    def __init__(self, path: Path):
        self._pipe = weights.load(path)
        self._pipe.set_progress_bar_config(disable=True)
        model, tokenizer = read_language_model()
        self._pipe.register_modules(language_model=model, tokenizer=tokenizer)
        suit(self._pipe.unet.to(runtime.dtype("auto", CPU)), CPU)

    def __call__(
        self, captions: list[str] | Tensor, guidance: float, steps: int = STEPS
    ) -> np.ndarray:
        """Return one picture per caption, or per vector of one [N, 128]."""
        given = "prompt_embeds" if isinstance(captions, Tensor) else "prompt"
        made = []
        for start in range(0, len(captions), 64):
            rows = captions[start : start + 64]
            pictures = self._pipe(
                **{given: rows},
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(start + i) for i in range(len(rows))],
                output_type="np",
            ).images
            made.append((pictures * 255).round().astype(np.uint8))
        return np.concatenate(made)


def trained_captions(per_class: int) -> tuple[list[str], np.ndarray]:
    """Return captions of known nouns, half with a ground, and their classes."""
    draw = random.Random(0)
    captions, asked = [], []
    for number, kind in enumerate(words.CLASSES):
        for i in range(per_class):
            ground = draw.choice(looks.GROUNDS) if i % 2 else ""
            captions += words.captions(kind, "", ground, 1, seed=1000 + i)
            asked.append(number)
    return captions, np.array(asked)


def taught_sentences(path: Path, per_class: int) -> tuple[Tensor, np.ndarray]:
    """Return vectors [10 x per_class, 128] of sentences that `train.py` was given, and classes.

    Each class in an order of chance, its sentences over again where they are too few.
    """
    texts = load_file(path)
    draw = torch.Generator().manual_seed(0)
    chosen = []
    for kind in range(len(words.CLASSES)):
        own = (texts["looks"][:, 0] == kind).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=draw)]
        chosen.append(own[torch.arange(per_class) % len(own)])
    rows = torch.cat(chosen)
    return texts["vectors"][rows], texts["looks"][rows, 0].numpy()


def unseen_captions(per_class: int) -> tuple[list[str], np.ndarray]:
    """Return captions of nouns that were never trained on, and their classes."""
    captions, asked = [], []
    for number, kind in enumerate(words.CLASSES):
        for i in range(per_class):
            noun = words.UNSEEN[kind][i % len(words.UNSEEN[kind])]
            captions.append(f"A photo of a {noun}.")
            asked.append(number)
    return captions, np.array(asked)


def colours(painter: Painter, guidance: float) -> dict[str, float]:
    """Return how often things and grounds have the colour asked for, where the rule names one."""
    captions, things = [], []
    for kind in ("automobile", "truck", "bird", "ship"):
        for colour in COLOURS_SAID:
            captions += words.captions(kind, colour, "", 4, seed=2000)
            things += [colour] * (len(captions) - len(things))
    seen, _ = looks.describe(painter(captions, guidance))
    wanted = np.array([looks.COLOURS.index(c) for c in things])
    result = {
        "thing_colour_as_asked": float((seen == wanted)[seen >= 0].mean()),
        "thing_colour_named": float((seen >= 0).mean()),
    }
    captions, grounds = [], []
    for kind in ("bird", "dog", "horse", "automobile"):
        for ground in looks.GROUNDS:
            captions += words.captions(kind, "", ground, 4, seed=3000)
            grounds += [ground] * (len(captions) - len(grounds))
    _, seen = looks.describe(painter(captions, guidance))
    wanted = np.array([looks.COLOURS.index(g) for g in grounds])
    return {
        **result,
        "ground_as_asked": float((seen == wanted)[seen >= 0].mean()),
        "ground_named": float((seen >= 0).mean()),
    }


def make_cnn() -> nn.Module:
    """Return a small classifier of 32 x 32 pictures."""

    def block(narrow: int, wide: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(narrow, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.MaxPool2d(2),
        )  # fmt: skip

    return nn.Sequential(
        block(3, 32), block(32, 64), block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip


def fit(model: nn.Module, pictures: np.ndarray, labels: np.ndarray, epochs: int, batch: int = 100):
    """Train with mirrored and shifted pictures, one cycle of the learning rate."""
    inputs, targets = _inputs(pictures), torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    steps = epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(inputs))
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            x = inputs[rows]
            if torch.rand(()) < 0.5:
                x = x.flip(-1)
            up, left = torch.randint(0, 9, (2,)).tolist()
            x = F.pad(x, (4, 4, 4, 4), mode="reflect")[..., up : up + 32, left : left + 32]
            with narrow():
                scores = model(x)
            loss = F.cross_entropy(scores.float(), targets[rows], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def narrow() -> torch.autocast:
    """Multiply in bfloat16 inside, where that is faster."""
    return torch.autocast("cpu", torch.bfloat16, runtime.has_fast_bfloat16(CPU))


@torch.inference_mode()
def features(model: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """Return what the last layer of a CNN is given, [N, 128]."""
    model.eval()
    return torch.cat([model[:-1](x) for x in _inputs(pictures).split(500)]).double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared Frechet distance of two normal distributions fitted to features."""
    means = a.mean(0) - b.mean(0)
    first, second = np.cov(a.T), np.cov(b.T)
    shared = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    return float(means @ means + np.trace(first) + np.trace(second) - 2 * shared)


@torch.inference_mode()
def predict(model: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """Return the classes a model sees [N]."""
    model.eval()
    return torch.cat([model(x).argmax(1) for x in _inputs(pictures).split(500)]).numpy()


def accuracy(model: nn.Module, pictures: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of pictures that a model sees as labelled."""
    return float((predict(model, pictures) == labels).mean())


def by_class(model: nn.Module, pictures: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return `accuracy` for each class."""
    right = predict(model, pictures) == labels
    return {k: float(right[labels == i].mean()) for i, k in enumerate(words.CLASSES)}


def _inputs(pictures: np.ndarray) -> Tensor:
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - MEAN) / SPREAD


def memory(
    painted: np.ndarray, real: np.ndarray, test: np.ndarray, sheet: Path
) -> dict[str, object]:
    """Return how near painted and real test pictures come to the training set; draw the nearest."""
    base = np.concatenate([real, real[:, :, ::-1]])  # mirrored too
    result: dict[str, object] = {"against": len(base)}
    found = {}
    for name, pictures in (("painted", painted), ("real_test", test[: len(painted)])):
        ratio, nearest, distance = _nearest(pictures, base)
        found[name] = ratio, nearest
        result[name] = {
            "distance_share_median": float(np.median(ratio)),
            "distance_share_lowest": float(ratio.min()),
            "distance_share_1_percent": float(np.quantile(ratio, 0.01)),
            "pixel_rmse_median": float(np.median(distance)),
            "pixel_rmse_lowest": float(distance.min()),
        }
    ratio, nearest = found["painted"]
    worst = ratio.argsort()[:12]
    pairs = [np.concatenate([painted[i], base[nearest[i]]], 1) for i in worst]
    rows = [np.concatenate(pairs[i : i + 4], 1) for i in range(0, 12, 4)]
    Image.fromarray(np.concatenate(rows)).resize((8 * 96, 3 * 96), Image.Resampling.NEAREST).save(
        sheet
    )
    return result


def _nearest(pictures: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each picture: nearest / mean of the 50 nearest, whose, and its RMSE in levels."""
    queries = torch.from_numpy(pictures.reshape(len(pictures), -1)).float()
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


def contact_sheet(painted: list[np.ndarray], per_class: int, path: Path, each: int = 8) -> None:
    """Draw `each` pictures of every class (row), one group of columns per guidance."""
    rows = []
    for kind in range(10):
        groups = [p[kind * per_class : kind * per_class + each] for p in painted]
        gap = np.full((32, 8, 3), 255, np.uint8)
        cells = [np.concatenate([*group, gap], 1) for group in groups]
        rows.append(np.concatenate(cells, 1))
    whole = Image.fromarray(np.concatenate(rows))
    whole.resize((whole.width * 2, whole.height * 2), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    main()
