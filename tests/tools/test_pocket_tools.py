"""tools/pocket: sentences that are true of images, trainings that a stop does not change."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from synclr_cli.render.engines.pocket import weights

TOOLS = Path(__file__).parents[2] / "tools" / "pocket"
pytestmark = pytest.mark.skipif(not TOOLS.is_dir(), reason="a checkout's tools")
MODULES = (
    "sentences",
    "colours",
    "prepare",
    "cnn",
    "loop",
    "evaluate",
    "perceptual",
    "train",
    "pairs",
    "distil",
)

RGB = {
    "red": (200, 20, 20), "orange": (250, 140, 20), "yellow": (240, 220, 40),
    "green": (40, 160, 50), "blue": (40, 80, 200), "brown": (110, 70, 30),
    "black": (10, 10, 10), "white": (250, 250, 250), "grey": (128, 128, 128),
}  # fmt: skip


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """The tools as modules, which import each other by their bare names."""
    monkeypatch.syspath_prepend(str(TOOLS))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def drawing(thing: str, ground: str) -> np.ndarray:
    """A square of one colour in the middle of another, with a little noise."""
    made = np.tile(np.array(RGB[ground], dtype=np.float32), (32, 32, 1))
    made[8:24, 8:24] = RGB[thing]
    noise = np.random.default_rng(0).normal(0, 2, made.shape)
    return np.clip(made + noise, 0, 255).astype(np.uint8)


# ----------------------------------------------------------------------------------- the words


def test_sentences_say_what_they_were_asked_to_and_are_read_back(tools):
    sentences = tools["sentences"]
    understood = total = astray = 0
    for kind in sentences.CLASSES:
        for colour in ("", *sentences.COLOURS):
            for ground in ("", *sentences.GROUNDS):
                made = sentences.captions(kind, colour, ground, 6)
                assert made and len(set(made)) == len(made), (kind, colour, ground)
                assert made == sentences.captions(kind, colour, ground, 6)
                for text in made:
                    said = sentences.read(text)
                    total += 1
                    if said is not None:  # "a blue wall" gives a colour to something else
                        understood += 1
                        assert said[:2] == (kind, colour), text
                        astray += bool(ground) and said[2] not in (ground, "")
    assert understood > 0.5 * total
    assert astray < 0.02 * understood


def test_held_out_nouns_are_never_taught(tools):
    sentences = tools["sentences"]
    for kind in sentences.CLASSES:
        assert not {n.lower() for n in sentences.UNSEEN[kind]} & {
            n.lower() for n in sentences.NOUNS[kind]
        }
        held_out = re.compile("|".join(rf"\b{noun}\b" for noun in sentences.UNSEEN[kind]), re.I)
        for ground in ("", *sentences.GROUNDS):
            assert not any(map(held_out.search, sentences.captions(kind, "red", ground, 40)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A red fire engine on the road.", ("truck", "red", "grey")),
        ("Two kittens asleep", ("cat", "", "")),
        ("A white, horse in the snow", ("horse", "white", "white")),
        ("A dog and a cat on the grass", None),  # two classes
        ("A dog with a red collar", None),  # the colour is another thing's
        ("A teapot in the snow", None),
        ("A grey cat under a grey sky", ("cat", "grey", "grey")),  # not the blue of a sky
    ],
)
def test_a_free_sentence_is_read_or_refused(tools, text, said):
    assert tools["sentences"].read(text) == said


# ----------------------------------------------------------------------------------- the looks


@pytest.mark.parametrize("thing", RGB)
def test_the_colour_in_the_middle_is_the_things(tools, thing):
    colours = tools["colours"]
    ground = "white" if thing != "white" else "black"
    things, grounds = colours.describe(drawing(thing, ground)[None])
    assert colours.COLOURS[things[0]] == thing
    assert colours.COLOURS[grounds[0]] == ground


@pytest.mark.parametrize("ground", ["green", "blue", "white", "black", "brown", "grey"])
def test_the_colour_at_the_rim_is_the_grounds(tools, ground):
    colours = tools["colours"]
    things, grounds = colours.describe(drawing("red", ground)[None])
    assert colours.COLOURS[things[0]] == "red" and colours.COLOURS[grounds[0]] == ground


def test_what_is_unclear_is_not_named(tools):
    colours = tools["colours"]
    same = np.full((1, 32, 32, 3), RGB["blue"], dtype=np.uint8)
    things, grounds = colours.describe(same)
    assert colours.COLOURS[grounds[0]] == "blue"
    every = np.array(list(RGB.values()), dtype=np.uint8)[np.arange(32 * 32) % len(RGB)]
    things, grounds = colours.describe(every.reshape(1, 32, 32, 3))
    assert things[0] == -1 and grounds[0] == -1


# ------------------------------------------------------------------------- prepare, train, resume


def write_images(path: Path, count: int, ground: str = "") -> Path:
    """Labelled images in the Hugging Face layout."""
    rows = []
    for i in range(count):
        sink = io.BytesIO()
        names = list(RGB)
        Image.fromarray(drawing(names[i % 9], ground or names[i % 4 + 3])).save(sink, "PNG")
        rows.append({"image": {"bytes": sink.getvalue(), "path": None}, "label": i % 10})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def run(module, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run a tool with these arguments, as a command would."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        module.main()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def prepared(tools, tmp_path, monkeypatch) -> Path:
    """A folder made of forty images; each sentence has made-up numbers instead of SmolLM2's."""
    draw = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        tools["prepare"], "encode", lambda texts: torch.randn(len(texts), 576, generator=draw)
    )
    folder = tmp_path / "prepared"
    images = write_images(tmp_path / "images.parquet", 40)
    run(tools["prepare"], monkeypatch, images, "--out", folder)
    save_file(feature_net(tools).state_dict(), folder / "perceptual.safetensors")
    return folder


def feature_net(tools) -> torch.nn.Module:
    torch.manual_seed(0)
    return tools["perceptual"].FeatureNet().eval()


def test_every_image_has_sentences_that_are_true_of_it(tools, prepared):
    images, texts = (load_file(prepared / f"{name}.safetensors") for name in ("images", "texts"))
    assert images["images"].shape == (40, 3, 32, 32)
    assert texts["vectors"].shape == (len(texts["attributes"]), 128)
    lines = (prepared / "texts.txt").read_text().splitlines()
    assert len(lines) == len(set(lines)) == len(texts["attributes"])
    said = set(map(tuple, texts["attributes"].tolist()))
    for kind, thing, ground in images["attributes"].tolist():
        for colour in {thing, -1}:
            for around in {ground, -1}:
                assert (kind, colour, around) in said


@pytest.mark.parametrize("perceptual", [0.0, 0.1])
def test_a_training_that_was_stopped_ends_with_the_same_bytes(
    tools, prepared, tmp_path, monkeypatch, perceptual
):
    module = tools["train"]
    straight, stopped = (shutil.copytree(prepared, tmp_path / name) for name in ("one", "two"))
    arguments = ("--steps", 4, "--batch", 4, "--width", 16, "--perceptual", perceptual)
    run(module, monkeypatch, straight, *arguments)

    draw, steps = module.Batches.draw, []

    def draw_and_stop(self, step):
        steps.append(step)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, step)

    monkeypatch.setattr(module.Batches, "draw", draw_and_stop)
    run(module, monkeypatch, stopped, *arguments)
    assert steps == [0, 1] and not (stopped / "pocket.safetensors").exists()
    monkeypatch.setattr(module.Batches, "draw", draw)
    run(module, monkeypatch, stopped, *arguments)
    file = "pocket.safetensors"
    assert (stopped / file).read_bytes() == (straight / file).read_bytes()

    pipe = weights.load(straight / file)  # what the engine would read
    fresh = module.make_unet(16, 128)
    assert pipe.unet.config.block_out_channels == list(fresh.config.block_out_channels)
    assert set(pipe.unet.state_dict()) == set(fresh.state_dict())
    kept = load_file(prepared / "texts.safetensors")["whitening.projection"]
    assert torch.equal(pipe.whitening.projection, kept.half().float())


# -------------------------------------------------------------------------- the perceptual distance


def test_how_far_apart_two_images_look(tools):
    distance = tools["perceptual"].distance
    seen = [torch.rand(2, c, s, s) for c, s in ((8, 4), (16, 2))]
    assert distance(seen, [3 * x for x in seen]).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert distance(seen, [-x for x in seen]).tolist() == pytest.approx([4, 4], rel=1e-5)


def test_the_guesses_with_the_least_noise_count(tools):
    term, net = tools["train"].perceptual_term, feature_net(tools).requires_grad_(False)
    images = torch.rand(8, 12, 16, 16) * 2 - 1
    guesses = (images + torch.randn(8, 12, 16, 16)).requires_grad_()
    level = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.3, 0.4, 0.5, 0.6]).view(8, 1, 1, 1)
    term(net, images, guesses, level).backward()
    touched = guesses.grad.flatten(1).norm(dim=1) > 0
    assert touched.tolist() == [False, True, False, True, True, True, True, True]
    assert term(net, images, images, level) < 1e-6


def test_the_net_that_was_trained_is_the_one_a_training_reads(tools, tmp_path, monkeypatch):
    module = tools["perceptual"]
    data = write_images(tmp_path / "images.parquet", 100, ground="white")
    run(module, monkeypatch, data, tmp_path, "--test", data, "--epochs", 5)
    net = module.read_feature_net(tmp_path / "perceptual.safetensors", torch.device("cpu"))
    assert not any(p.requires_grad for p in net.parameters()) and not net.training
    images = tools["prepare"].read_images(data)[0][:4]
    standardised = tools["cnn"].inputs_of(images)
    folded = module.fold(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    assert torch.allclose(module.standardised(folded), standardised, atol=1e-5)
    assert net(standardised).shape == (4, 10)


# ------------------------------------------------------------------------------------- few steps


@pytest.fixture
def flow(tools, prepared, monkeypatch) -> Path:
    """A small flow of random weights in a prepared folder, and 16 pairs of it."""
    whitening = {
        key.removeprefix("whitening."): tensor
        for key, tensor in load_file(prepared / "texts.safetensors").items()
        if key.startswith("whitening.")
    }
    torch.manual_seed(0)
    weights.save(prepared / "pocket.safetensors", tools["train"].make_unet(16, 128), whitening)
    monkeypatch.setattr(tools["pairs"], "SHARD", 8)
    monkeypatch.setattr(tools["distil"], "SHARD", 8)
    make_pairs(tools, monkeypatch, prepared, 16)
    return prepared


def make_pairs(tools, monkeypatch, folder: Path, count: int) -> None:
    arguments = ("--weights", folder / "pocket.safetensors", "--count", count, "--steps", 2)
    run(tools["pairs"], monkeypatch, folder, *arguments)


def test_a_pair_is_noise_and_where_the_guided_flow_ends(tools, flow):
    shard = load_file(flow / "pairs" / "00001.safetensors")
    pipe = weights.load(flow / "pocket.safetensors")
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        prompt_embeds=shard["text"].float(), latents=shard["noise"].float(),
        num_inference_steps=2, guidance_scale=1.5, output_type="latent",
    ).images  # fmt: skip
    # In float32 here; the pairs may be of bfloat16.
    torch.testing.assert_close(images, shard["images"].float(), rtol=0, atol=0.1)
    assert (images - shard["noise"]).abs().mean() > 0.1
    assert not torch.equal(load_file(flow / "pairs" / "00000.safetensors")["noise"], shard["noise"])


def test_pairs_that_are_there_stay_and_more_are_added(tools, flow, monkeypatch):
    first = flow / "pairs" / "00000.safetensors"
    before = first.read_bytes(), first.stat().st_mtime_ns
    make_pairs(tools, monkeypatch, flow, 24)
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert len(list((flow / "pairs").iterdir())) == 3
    first.unlink()
    make_pairs(tools, monkeypatch, flow, 8)
    assert first.read_bytes() == before[0]


def test_sentences_encoded_for_another_flow_are_refused(tools, flow, monkeypatch):
    texts = load_file(flow / "texts.safetensors")
    texts["whitening.projection"] = -texts["whitening.projection"]
    save_file(texts, flow / "texts.safetensors")
    with pytest.raises(SystemExit, match="prepare --weights"):
        make_pairs(tools, monkeypatch, flow, 32)


class Knows(torch.nn.Module):
    """A student's stand-in: its velocity leads to one image from everywhere."""

    def __init__(self, image: torch.Tensor):
        super().__init__()
        self.image, self.levels = image, []

    def forward(self, samples, times, _, class_labels, return_dict):
        self.levels.append(float(times[0]) / 1000)
        return ((samples - self.image) / (times[:, None, None, None] / 1000),)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_student_that_knows_the_image_has_no_loss_after_any_of_its_steps(tools, taken):
    losses, net = tools["distil"].losses, feature_net(tools).requires_grad_(False)
    image, noise, text = torch.rand(2, 12, 16, 16), torch.randn(2, 12, 16, 16), torch.zeros(2, 128)
    student = Knows(image)
    pixels, apart, contrast = losses(student, net, image, text, noise, 4, taken)
    assert student.levels == pytest.approx([1 - i / 4 for i in range(taken + 1)])
    assert pixels < 1e-10 and apart < 1e-4 and contrast < 1e-8
    pixels, apart, contrast = losses(Knows(image + 0.5), net, image, text, noise, 4, taken)
    assert pixels == pytest.approx(0.25, rel=1e-4) and apart > 1e-3
    assert contrast < 1e-8  # brighter all over


def test_contrast_is_the_difference_of_local_deviations(tools):
    contrast_loss, fold = tools["distil"].contrast_loss, tools["perceptual"].fold
    image = torch.rand(2, 3, 32, 32)
    half = 0.5 + (image - 0.5) / 2
    squares = {
        side: image.unfold(2, side, side).unfold(3, side, side).std((4, 5), unbiased=False)
        for side in (4, 8, 32)
    }
    expected = np.mean([(sigma / 2).square().mean() for sigma in squares.values()])
    assert contrast_loss(fold(half), fold(image)) == pytest.approx(expected, rel=0.01)
    assert contrast_loss(fold(image.flip(1)), fold(image)) > 0
    assert contrast_loss(fold(image + 0.3), fold(image)) < 1e-9


def distil(tools, monkeypatch, folder: Path, steps: int = 4) -> None:
    arguments = ("--weights", folder / "pocket.safetensors", "--steps", steps, "--batch", 4)
    run(tools["distil"], monkeypatch, folder, *arguments)


def test_a_distillation_that_was_stopped_ends_with_the_same_bytes(
    tools, flow, tmp_path, monkeypatch
):
    straight, stopped = (shutil.copytree(flow, tmp_path / name) for name in ("one", "two"))
    distil(tools, monkeypatch, straight)
    draw, calls = tools["distil"].Pairs.draw, []

    def draw_and_stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, *arguments)

    monkeypatch.setattr(tools["distil"].Pairs, "draw", draw_and_stop)
    distil(tools, monkeypatch, stopped)
    assert len(calls) == 2
    monkeypatch.setattr(tools["distil"].Pairs, "draw", draw)
    distil(tools, monkeypatch, stopped)
    file = weights.FEW_STEPS
    assert (stopped / file).read_bytes() == (straight / file).read_bytes()


def test_distilling_brings_few_steps_nearer_to_the_images_of_the_pairs(tools, flow, monkeypatch):
    for path in (flow / "pairs").iterdir():  # a flow that is worth learning: always one image
        shard = load_file(path)
        shard["images"][:] = torch.linspace(-1, 1, 12 * 16 * 16).reshape(12, 16, 16)
        save_file(shard, path)

    def errors() -> list[float]:
        pipe = weights.load(flow / "pocket.safetensors")
        pipe.set_progress_bar_config(disable=True)
        apart = []
        for steps in (1, 2, 4):
            images = pipe(
                prompt_embeds=shard["text"].float(), latents=shard["noise"].float(),
                num_inference_steps=steps, output_type="latent",
                guidance_scale=None if pipe.few_steps else 1,
            ).images  # fmt: skip
            apart.append(float((images - shard["images"].float()).square().mean()))
        return apart

    before = errors()
    distil(tools, monkeypatch, flow, steps=40)
    for steps, old, new in zip((1, 2, 4), before, errors(), strict=True):
        assert new < 0.9 * old, steps


# ---------------------------------------------------------------------------------- the evaluation


def test_the_frechet_distance_is_that_of_two_normal_distributions(tools):
    frechet = tools["cnn"].frechet
    a = np.random.default_rng(0).normal(0, 1, (500, 4))
    spread, shift = np.diag([1.0, 2.0, 3.0, 0.5]), np.array([1.0, 0.0, -2.0, 0.0])
    assert abs(frechet(a, a)) < 1e-8
    covariance = np.cov(a.T)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values) @ vectors.T
    middle = np.linalg.eigvalsh(root @ spread @ covariance @ spread @ root)
    means = a.mean(0) - (a @ spread + shift).mean(0)
    known = means @ means + np.trace(covariance) + np.trace(spread @ covariance @ spread)
    assert frechet(a, a @ spread + shift) == pytest.approx(known - 2 * np.sqrt(middle).sum())


def test_as_many_sentences_of_each_class_are_chosen(tools, prepared, tmp_path):
    texts = load_file(prepared / "texts.safetensors")
    kept = torch.cat(
        [(texts["attributes"][:, 0] == kind).nonzero().flatten()[:3] for kind in range(10)]
    )
    few = {key: texts[key][kept].contiguous() for key in ("vectors", "attributes")}
    save_file(few, tmp_path / "few.safetensors")
    vectors, kinds = tools["evaluate"].taught_sentences(tmp_path / "few.safetensors", 5)
    assert vectors.shape == (50, 128) and kinds.tolist() == sorted([*range(10)] * 5)
    for i, (vector, kind) in enumerate(zip(vectors, kinds, strict=True)):
        found = (few["vectors"] == vector).all(1).nonzero().item()
        assert few["attributes"][found, 0] == kind
        assert i % 5 < 3 or torch.equal(vector, vectors[i - 3])  # over again


def test_rendered_images_are_read_with_the_class_of_their_concept(tools, tmp_path):
    rows = []
    for number, concept in enumerate(("red tree frog", "Persian cat")):
        data = io.BytesIO()
        Image.fromarray(drawing("red", "white").repeat(2, 0).repeat(2, 1)).save(data, "PNG")
        image = {"bytes": data.getvalue(), "path": None}
        rows.append({"image": image, "concept": concept, "caption_id": 7 + number})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "part-00000.parquet")
    images, kinds, captions = tools["evaluate"].read_rendered([tmp_path / "part-00000.parquet"])
    assert [tools["sentences"].CLASSES[k] for k in kinds] == ["frog", "cat"]
    assert captions.tolist() == [7, 8]
    assert np.array_equal(images[0], drawing("red", "white"))  # 64 px are 2 x 2 averages


def test_diversity_is_the_mean_distance_of_two_images_of_a_caption(tools):
    values = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [9.0, 9.0], [9.0, 10.0]])
    captions = np.array([1, 1, 1, 2, 2])
    # Caption 1 has distances 5, 0, 5; caption 2 has 1; between captions none counts.
    assert tools["cnn"].diversity(values, captions) == pytest.approx((10 / 3 + 1) / 2)
    alone = np.array([1, 1, 1, 2, 3])
    assert tools["cnn"].diversity(values, alone) == pytest.approx(10 / 3)


def test_what_a_report_has_is_not_measured_again(tools, tmp_path):
    path = tmp_path / "report.json"
    tools["evaluate"].Report(path).add("top1", lambda: 0.5)
    again = tools["evaluate"].Report(path)
    again.add("top1", lambda: 1 / 0)
    again.add("other", lambda: 2)
    assert json.loads(path.read_text()) == {"top1": 0.5, "other": 2} and "top1" in again
