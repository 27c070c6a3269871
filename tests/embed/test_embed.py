"""Embeddings: what each row holds, of every layout, and what an interrupted run leaves."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_folders import write_images
from PIL import Image

from synclr_cli.data import image_sets
from synclr_cli.embed.run import run
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import backbone as backbones, features

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def pixels(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


@pytest.fixture
def photos(tmp_path):
    """Five images of noise, without labels, one of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "c.png", "d.png", "more/e.png")):
        Image.fromarray(pixels(i)).save(folder / name)
    return folder


def directly(spec: str, images: list[np.ndarray]) -> np.ndarray:
    """Return the cls features of images of the backbone's own size, [n, D]: no code of embed's."""
    model = backbones.open_backbone(spec).model.eval()
    x = torch.stack([torch.tensor(i / 255.0).float().permute(2, 0, 1) for i in images])
    with torch.no_grad():
        tokens = model.forward_features((x - MEAN[:, None, None]) / STD[:, None, None])
    return tokens[:, 0].numpy()


def embed(spec, data, out, **settings):
    settings = {"precision": "float32", "workers": 0, **settings}
    return run(str(spec), str(data), out, **settings)


def test_a_row_holds_the_features_of_its_image(small_vit, photos, tmp_path):
    table = pq.read_table(embed(small_vit, photos, tmp_path / "x.parquet", batch_size=2))
    assert table["path"].to_pylist() == ["a.png", "b.png", "c.png", "d.png", "more/e.png"]
    assert table["label"].null_count == 5
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 192)
    expected = directly(small_vit, [pixels(i) for i in range(5)])
    found = np.stack(table["embedding"].to_numpy())
    assert np.allclose(found, expected, atol=1e-4)
    assert not np.allclose(found[0], expected[1], atol=1e-2)


def test_an_array_is_written_by_the_ending_with_its_rows_beside_it(small_vit, photos, tmp_path):
    array = np.load(embed(small_vit, photos, tmp_path / "x.npy"))
    assert np.allclose(array, directly(small_vit, [pixels(i) for i in range(5)]), atol=1e-4)
    beside = json.loads((tmp_path / "x.json").read_text())
    assert [row["path"] for row in beside["rows"]][-1] == "more/e.png"
    assert beside["header"]["schema"] == "embeddings"


def test_images_of_render_bring_their_concepts_and_ids(small_vit, tmp_path):
    images = write_images(tmp_path / "images")
    table = pq.read_table(embed(small_vit, images, tmp_path / "x.parquet"))
    rendered = pq.read_table(images)
    for ours, theirs in (("label", "concept"), ("caption_id", "caption_id"), ("view", "view")):
        assert table[ours].to_pylist() == rendered[theirs].to_pylist()
    assert table["path"].to_pylist()[0] == "part-00000.parquet"


@pytest.mark.parametrize("labelled", [False, True])
def test_parquet_with_and_without_labels(photos, tmp_path, labelled):
    cells = [{"bytes": (photos / f"{n}.png").read_bytes(), "path": None} for n in "abc"]
    columns = {"image": cells, **({"label": ["x", "y", "x"]} if labelled else {})}
    pq.write_table(pa.table(columns), tmp_path / "some.parquet")
    opened = image_sets.open_images(str(tmp_path / "some.parquet"))
    assert opened.rows["label"].to_pylist() == (["x", "y", "x"] if labelled else [None] * 3)
    assert opened.rows["row"].to_pylist() == [0, 1, 2]
    assert np.array_equal(np.asarray(opened.source.image(2)), pixels(2))


def test_class_folders_tell_split_and_label(tmp_path):
    for split, label, seed in (("train", "cat", 0), ("train", "dog", 1), ("test", "dog", 2)):
        folder = tmp_path / "pets" / split / label
        folder.mkdir(parents=True)
        Image.fromarray(pixels(seed)).save(folder / "1.png")
    opened = image_sets.open_images(str(tmp_path / "pets"))
    assert opened.rows["path"].to_pylist() == [
        "train/cat/1.png", "train/dog/1.png", "test/dog/1.png",
    ]  # fmt: skip
    assert opened.rows["label"].to_pylist() == ["cat", "dog", "dog"]
    assert opened.rows["split"].to_pylist() == ["train", "train", "test"]
    assert np.array_equal(np.asarray(opened.source.image(2)), pixels(2))


def test_what_was_interrupted_goes_on_and_leaves_nothing(small_vit, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 2)
    whole = pq.read_table(embed(small_vit, photos, tmp_path / "whole.parquet"))
    rows, extract = [], features.extract

    def die_at_the_second(*arguments, **settings):
        if rows:
            raise KeyboardInterrupt
        rows.append(arguments[3])
        return extract(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(features, "extract", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            embed(small_vit, photos, tmp_path / "x.parquet")

    def note(*arguments, **settings):
        rows.append(arguments[3])
        return extract(*arguments, **settings)

    monkeypatch.setattr(features, "extract", note)
    assert pq.read_table(embed(small_vit, photos, tmp_path / "x.parquet")).equals(whole)
    assert [r.start for r in rows] == [0, 2, 4]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["photos", "whole.parquet", "x.parquet"]


def test_the_same_call_returns_at_once_and_another_is_refused(
    small_vit, photos, tmp_path, monkeypatch
):
    out = embed(small_vit, photos, tmp_path / "x.parquet")
    before = out.stat().st_mtime_ns
    embed(small_vit, photos, out)
    assert out.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"backbone, image_size differ.*--overwrite"):
        embed("random:vit_tiny_patch16_224", photos, out)
    (photos / "a.png").unlink()
    with pytest.raises(UsageError, match=r"\(images differ\)"):
        embed(small_vit, photos, out)
    embed(small_vit, photos, out, overwrite=True)
    assert pq.read_table(out).num_rows == 4


def test_a_foreign_file_is_not_overwritten_by_chance(small_vit, photos, tmp_path):
    out = tmp_path / "x.npy"
    np.save(out, np.zeros(3))
    with pytest.raises(UsageError, match="holds no embeddings"):
        embed(small_vit, photos, out)


@pytest.mark.parametrize("kind", ["empty", "text", "absent"])
def test_a_place_without_images_is_named(small_vit, tmp_path, kind, synclr):
    place = tmp_path / "place"
    if kind != "absent":
        place.mkdir()
    if kind == "text":
        (place / "notes.txt").write_text("no image")
    done = synclr("embed", small_vit, "--data", place, "--out", tmp_path / "x.parquet")
    assert done.code == DataError.exit_code and "place" in done.error_line


def test_another_ending_is_refused(small_vit, photos, tmp_path, synclr):
    done = synclr("embed", small_vit, "--data", photos, "--out", tmp_path / "x.csv")
    assert done.code == 2 and ".parquet" in done.error_line
