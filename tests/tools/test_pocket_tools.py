"""tools/pocket: sentences that are true of pictures, and a training that a stop does not change."""

from __future__ import annotations

import importlib
import io
import os
import re
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
MODULES = ("words", "looks", "prepare", "judge", "eyes", "train")

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


def picture(thing: str, ground: str) -> np.ndarray:
    """A square of one colour in the middle of another, with a little noise."""
    made = np.tile(np.array(RGB[ground], dtype=np.float32), (32, 32, 1))
    made[8:24, 8:24] = RGB[thing]
    noise = np.random.default_rng(0).normal(0, 2, made.shape)
    return np.clip(made + noise, 0, 255).astype(np.uint8)


# ----------------------------------------------------------------------------------- the words


def test_sentences_say_what_they_were_asked_to_and_are_read_back(tools):
    words = tools["words"]
    understood = total = astray = 0
    for kind in words.CLASSES:
        for colour in ("", *words.COLOURS):
            for ground in ("", *words.GROUNDS):
                made = words.captions(kind, colour, ground, 6)
                assert made and len(set(made)) == len(made), (kind, colour, ground)
                assert made == words.captions(kind, colour, ground, 6)
                for text in made:
                    said = words.read(text)
                    total += 1
                    if said is not None:  # "a blue wall" gives a colour to something else
                        understood += 1
                        assert said[:2] == (kind, colour), text
                        astray += bool(ground) and said[2] not in (ground, "")
    assert understood > 0.5 * total
    assert astray < 0.02 * understood


def test_held_out_nouns_are_never_taught(tools):
    words = tools["words"]
    for kind in words.CLASSES:
        assert not {n.lower() for n in words.UNSEEN[kind]} & {n.lower() for n in words.NOUNS[kind]}
        held_out = re.compile("|".join(rf"\b{noun}\b" for noun in words.UNSEEN[kind]), re.I)
        for ground in ("", *words.GROUNDS):
            assert not any(map(held_out.search, words.captions(kind, "red", ground, 40)))


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
    assert tools["words"].read(text) == said


# ----------------------------------------------------------------------------------- the looks


@pytest.mark.parametrize("thing", RGB)
def test_the_colour_in_the_middle_is_the_things(tools, thing):
    looks = tools["looks"]
    ground = "white" if thing != "white" else "black"
    things, grounds = looks.describe(picture(thing, ground)[None])
    assert looks.COLOURS[things[0]] == thing
    assert looks.COLOURS[grounds[0]] == ground


@pytest.mark.parametrize("ground", ["green", "blue", "white", "black", "brown", "grey"])
def test_the_colour_at_the_rim_is_the_grounds(tools, ground):
    looks = tools["looks"]
    things, grounds = looks.describe(picture("red", ground)[None])
    assert looks.COLOURS[things[0]] == "red" and looks.COLOURS[grounds[0]] == ground


def test_what_is_unclear_is_not_named(tools):
    looks = tools["looks"]
    same = np.full((1, 32, 32, 3), RGB["blue"], dtype=np.uint8)
    things, grounds = looks.describe(same)
    assert looks.COLOURS[grounds[0]] == "blue"
    every = np.array(list(RGB.values()), dtype=np.uint8)[np.arange(32 * 32) % len(RGB)]
    things, grounds = looks.describe(every.reshape(1, 32, 32, 3))
    assert things[0] == -1 and grounds[0] == -1


# ------------------------------------------------------------------------- prepare, train, resume


@pytest.fixture
def prepared(tools, tmp_path, monkeypatch) -> Path:
    """A folder made of forty pictures; each sentence has made-up numbers instead of SmolLM2's."""
    rows = []
    for i in range(40):
        sink = io.BytesIO()
        colours = list(RGB)
        Image.fromarray(picture(colours[i % 9], colours[i % 4 + 3])).save(sink, "PNG")
        rows.append({"image": {"bytes": sink.getvalue(), "path": None}, "label": i % 10})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pictures.parquet")
    draw = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        tools["prepare"], "encode", lambda texts: torch.randn(len(texts), 576, generator=draw)
    )
    folder = tmp_path / "prepared"
    arguments = ["prepare.py", str(tmp_path / "pictures.parquet"), "--out", str(folder)]
    monkeypatch.setattr(sys, "argv", arguments)
    tools["prepare"].main()
    return folder


def test_every_picture_has_sentences_that_are_true_of_it(tools, prepared):
    pictures, texts = (
        load_file(prepared / f"{name}.safetensors") for name in ("pictures", "texts")
    )
    assert pictures["pictures"].shape == (40, 3, 32, 32)
    assert texts["vectors"].shape == (len(texts["looks"]), 128)
    lines = (prepared / "texts.txt").read_text().splitlines()
    assert len(lines) == len(set(lines)) == len(texts["looks"])
    said = set(map(tuple, texts["looks"].tolist()))
    for kind, thing, ground in pictures["looks"].tolist():
        for colour in {thing, -1}:
            for around in {ground, -1}:
                assert (kind, colour, around) in said


def train(tools, folder: Path, monkeypatch, eyes: float = 0.0) -> None:
    arguments = ["train.py", str(folder), "--steps", "4", "--batch", "4", "--width", "16"]
    arguments += ["--eyes", str(eyes)]
    monkeypatch.setattr(sys, "argv", arguments)
    before = signal.getsignal(signal.SIGTERM)
    try:
        tools["train"].main()
    finally:
        signal.signal(signal.SIGTERM, before)


def some_eyes(tools) -> torch.nn.Module:
    torch.manual_seed(0)
    return tools["eyes"].Eyes().eval()


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_training_that_was_stopped_ends_with_the_same_bytes(
    tools, prepared, tmp_path, monkeypatch, weight
):
    module = tools["train"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder in (straight, stopped):
        folder.mkdir()
        for name in ("pictures.safetensors", "texts.safetensors"):
            (folder / name).write_bytes((prepared / name).read_bytes())
        save_file(some_eyes(tools).state_dict(), folder / "eyes.safetensors")
    train(tools, straight, monkeypatch, weight)

    draw, drawn = module.Batches.draw, []

    def draw_and_stop(self, step):
        drawn.append(step)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, step)

    monkeypatch.setattr(module.Batches, "draw", draw_and_stop)
    train(tools, stopped, monkeypatch, weight)
    assert drawn == [0, 1] and not (stopped / "pocket.safetensors").exists()
    monkeypatch.setattr(module.Batches, "draw", draw)
    train(tools, stopped, monkeypatch, weight)
    file = "pocket.safetensors"
    assert (stopped / file).read_bytes() == (straight / file).read_bytes()

    pipe = weights.load(straight / file)  # what the engine would read
    fresh = module.make_unet(16, 128)
    assert pipe.unet.config.block_out_channels == list(fresh.config.block_out_channels)
    assert set(pipe.unet.state_dict()) == set(fresh.state_dict())
    kept = load_file(prepared / "texts.safetensors")["whitening.projection"]
    assert torch.equal(pipe.whitening.projection, kept.half().float())


# ------------------------------------------------------------------------------------ the eyes


def test_how_far_apart_two_pictures_look(tools):
    far = tools["eyes"].far
    seen = [torch.rand(2, c, s, s) for c, s in ((8, 4), (16, 2))]
    assert far(seen, [3 * x for x in seen]).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert far(seen, [-x for x in seen]).tolist() == pytest.approx([4, 4], rel=1e-5)


def test_eyes_look_at_the_guesses_with_the_least_noise(tools):
    train_module, eyes = tools["train"], some_eyes(tools)
    pictures = torch.rand(8, 12, 16, 16) * 2 - 1
    guessed = (pictures + torch.randn(8, 12, 16, 16)).requires_grad_()
    level = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.3, 0.4, 0.5, 0.6]).view(8, 1, 1, 1)
    wide = torch.autocast("cpu", enabled=False)
    train_module.look(eyes, pictures, guessed, level, wide).backward()
    touched = guessed.grad.flatten(1).norm(dim=1) > 0
    assert touched.tolist() == [False, True, False, True, True, True, True, True]
    assert train_module.look(eyes, pictures, pictures, level, wide) < 1e-6


def test_eyes_that_were_trained_are_those_a_training_reads(tools, tmp_path, monkeypatch):
    rows = []
    for i in range(100):
        sink = io.BytesIO()
        Image.fromarray(picture(list(RGB)[i % 9], "white")).save(sink, "PNG")
        rows.append({"image": {"bytes": sink.getvalue(), "path": None}, "label": i % 10})
    data = tmp_path / "pictures.parquet"
    pq.write_table(pa.Table.from_pylist(rows), data)
    arguments = ["eyes.py", str(data), str(tmp_path), "--test", str(data), "--epochs", "5"]
    monkeypatch.setattr(sys, "argv", arguments)
    tools["eyes"].main()
    path = tmp_path / "eyes.safetensors"
    eyes = tools["train"].read_eyes(path, torch.device("cpu"))
    assert not any(p.requires_grad for p in eyes.parameters()) and not eyes.training
    pictures = tools["prepare"].read_pictures(data)[0][:4]
    as_judged = tools["judge"]._inputs(pictures)
    folded = tools["train"].fold(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1)
    assert torch.allclose(tools["train"].standardised(folded), as_judged, atol=1e-5)
    assert eyes(as_judged).shape == (4, 10)


# ----------------------------------------------------------------------------------- the judge


def test_the_frechet_distance_is_that_of_two_normal_distributions(tools):
    frechet = tools["judge"].frechet
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


def test_as_many_sentences_of_each_class_are_painted(tools, prepared, tmp_path):
    texts = load_file(prepared / "texts.safetensors")
    kept = torch.cat([(texts["looks"][:, 0] == kind).nonzero().flatten()[:3] for kind in range(10)])
    few = {key: texts[key][kept].contiguous() for key in ("vectors", "looks")}
    save_file(few, tmp_path / "few.safetensors")
    vectors, kinds = tools["judge"].taught_sentences(tmp_path / "few.safetensors", 5)
    assert vectors.shape == (50, 128) and kinds.tolist() == sorted([*range(10)] * 5)
    for i, (vector, kind) in enumerate(zip(vectors, kinds, strict=True)):
        found = (few["vectors"] == vector).all(1).nonzero().item()
        assert few["looks"][found, 0] == kind
        assert i % 5 < 3 or torch.equal(vector, vectors[i - 3])  # over again


def test_rendered_pictures_are_read_with_the_class_of_their_concept(tools, tmp_path):
    rows = []
    for concept in ("red tree frog", "Persian cat"):
        data = io.BytesIO()
        Image.fromarray(picture("red", "white").repeat(2, 0).repeat(2, 1)).save(data, "PNG")
        rows.append({"image": {"bytes": data.getvalue(), "path": None}, "concept": concept})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "part-00000.parquet")
    pictures, kinds = tools["judge"].read_rendered([tmp_path / "part-00000.parquet"])
    assert [tools["words"].CLASSES[k] for k in kinds] == ["frog", "cat"]
    assert np.array_equal(pictures[0], picture("red", "white"))  # 64 px are 2 x 2 averages
