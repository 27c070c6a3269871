"""Batches: functions of (seed, step, rank), of nothing else; and what images are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from synclr_cli.config import TrainConfig
from synclr_cli.data import storage
from synclr_cli.data.manifest import open_dataset
from synclr_cli.errors import DataError, UsageError
from synclr_cli.train import batches
from synclr_cli.train.image_index import ImageIndex, require_trainable

TENSORS = ("globals", "locals", "masks", "ids", "labels")


def source(folder: Path, config: TrainConfig, rank: int = 0, world: int = 1) -> batches.Batches:
    index = ImageIndex(open_dataset(folder, "images"))
    require_trainable(index, config, folder, world)
    return batches.Batches(index, config, patches=16, rank=rank, world=world)


def same(a: batches.Batch, b: batches.Batch) -> bool:
    return a.caption_ids == b.caption_ids and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS
    )


def test_a_batch_is_a_function_of_its_step(images: Path, small: Callable) -> None:
    config = small()
    first = source(images, config)
    walked = [first.make(step) for step in (0, 3, 17)]
    assert same(source(images, config).make(17), walked[-1])
    assert not same(walked[0], walked[1])
    assert not same(source(images, small(seed=1)).make(0), walked[0])


def test_shapes_and_labels(images: Path, small: Callable) -> None:
    batch = source(images, small()).make(0)
    assert batch.globals.shape == (12, 3, 32, 32) and batch.globals.dtype == torch.uint8
    assert batch.locals.shape == (24, 3, 16, 16)
    assert batch.masks.shape == (12, 16) and batch.masks.sum() == 6 * 8
    assert len(set(batch.caption_ids)) == 4 and len(set(batch.ids.tolist())) == 12
    assert (batch.labels.reshape(4, 3) == batch.labels[::3, None]).all()
    assert len(set(batch.labels.tolist())) == 4


def test_the_union_of_the_ranks_is_the_batch_of_one(images: Path, small: Callable) -> None:
    whole = source(images, small()).make(2)
    parts = [source(images, small(), rank, 2).make(2) for rank in range(2)]
    for name in TENSORS:
        union = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(union, getattr(whole, name)), name


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_nothing(images: Path, small: Callable, workers: int) -> None:
    config = small()
    expected = source(images, config)
    steps = range(2, 6)
    loaded = list(batches.load(source(images, config), steps, workers=workers))
    assert [b.step for b in loaded] == list(steps)
    assert all(same(b, expected.make(b.step)) for b in loaded)


def test_an_epoch_shows_each_caption_once(images: Path, small: Callable) -> None:
    made = source(images, small())
    epochs = [np.concatenate([made.captions(e * 6 + s) for s in range(6)]) for e in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert (epochs[0] != epochs[1]).any()


def test_all_views_of_a_caption_get_their_turn(images: Path, small: Callable) -> None:
    made = source(images, small(views=2))
    seen = {tuple(row) for step in range(40) for row in made.images(step)[0].tolist()}
    assert seen == {(a, b) for a in range(4) for b in range(4) if a != b}


def test_two_captions_of_one_text_are_one_class(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    def repeat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [r | {"caption": "the same words"} if r["caption_id"] < 102 else r for r in rows]

    folder = make_images(tmp_path / "images", captions=4, edit=repeat)
    batch = source(folder, small()).make(0)
    labels = dict(zip(batch.caption_ids, batch.labels[::3].tolist(), strict=True))
    assert labels[100] == labels[101] != labels[102]


def test_one_image_a_caption_is_refused(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    folder = make_images(tmp_path / "images", views=1)
    with pytest.raises(DataError, match=r"24 of 24 captions have one image.*no positive"):
        source(folder, small())


def test_a_single_caption_with_one_image_is_refused(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    folder = make_images(
        tmp_path / "images",
        edit=lambda rows: [r for r in rows if r["caption_id"] != 105 or r["view"] == 0],
    )
    with pytest.raises(DataError, match=r"1 of 24 captions have one image"):
        source(folder, small())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": 5}, r"got 4, expected at least train.views = 5. Render more views"),
        ({"captions_per_batch": 25}, r"captions: got 24, expected at least train.captions_per"),
    ],
)
def test_a_recipe_that_asks_for_more_than_there_is_is_refused(
    images: Path, small: Callable, change: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        source(images, small(**change))


def test_a_batch_that_the_ranks_do_not_divide_is_refused(images: Path, small: Callable) -> None:
    with pytest.raises(UsageError, match="a multiple of the 3 ranks"):
        source(images, small(), 0, 3)


def cut_short(data: bytes) -> bytes:
    return data[:90]


def overwritten(data: bytes) -> bytes:
    """Put other bytes in the middle of an image: it decodes without an error."""
    middle = len(data) * 2 // 3
    return data[:middle] + bytes(64) + data[middle + 64 :]


def damage(*broken: tuple[int, int], how: Callable = cut_short) -> Callable:
    def edit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if (row["caption_id"], row["view"]) in broken:
                row["image"] = {"bytes": how(row["image"]["bytes"]), "path": None}
        return rows

    return edit


@pytest.mark.parametrize("how", [cut_short, overwritten, lambda _: b"\xff\xd8\xff?", lambda _: b""])
def test_a_damaged_image_is_replaced_by_another_view_and_told(
    tmp_path: Path, make_images: Callable, small: Callable, how: Callable
) -> None:
    folder = make_images(tmp_path / "images", edit=damage((107, 2), how=how))
    made = source(folder, small(views=4, captions_per_batch=24))
    batch = made.make(0)
    assert [d[:2] for d in batch.damaged] == [(107, 2)]
    assert "row" in batch.damaged[0][2] and batch.globals.shape[0] == 96


def test_a_damaged_image_is_told_once_in_a_batch_in_words_that_stay(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    folder = make_images(tmp_path / "images", edit=damage((107, 1), (107, 2), how=lambda _: b"?"))
    made = source(folder, small(views=4, captions_per_batch=24, global_crops=2))
    told = made.make(0).damaged
    assert sorted(d[:2] for d in told) == [(107, 1), (107, 2)]
    assert told[0][2].endswith("does not decode as an image (no known format)")


def test_a_image_that_stands_in_for_another_keeps_its_own_class(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    folder = make_images(tmp_path / "images", edit=damage((107, 2)))
    config = small(
        views=4, captions_per_batch=24, global_crops=2, positives="image", patch_weight=0,
        teacher=False,
    )  # fmt: skip
    batch = source(folder, config).make(0)
    place = batch.caption_ids.index(107)
    labels = batch.labels.view(24, 8)[place].tolist()
    assert sorted(map(labels.count, set(labels))) == [2, 2, 4]  # the stand-in's, twice as often


def test_no_images_at_all_is_one_line(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    folder = make_images(tmp_path / "images", captions=0, parts=1)
    with pytest.raises(DataError, match="images holds no images"):
        source(folder, small())
    manifest = storage.read_json(folder / "_manifest.json")
    del manifest["header"]
    storage.write_json(folder / "_manifest.json", manifest)
    with pytest.raises(DataError, match=r"manifest.json lacks 'header'"):
        source(folder, small())


@pytest.mark.parametrize("objective", ["contrast", "cross-entropy"])
def test_one_concept_for_all_is_refused(
    tmp_path: Path, make_images: Callable, small: Callable, objective: str
) -> None:
    folder = make_images(tmp_path / "images", edit=lambda rows: [r | {"concept": ""} for r in rows])
    config = small(positives="concept", objective=objective, teacher=False, patch_weight=0)
    with pytest.raises(DataError, match=r"kinds of concept: got 1, expected at least 2"):
        source(folder, config)


def rewrite(part: Path, column: str, kind: pa.DataType) -> None:
    table = pq.read_table(part)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, table[column].cast(kind)), part)


def test_a_part_that_others_wrote_over_is_refused(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    folder = make_images(tmp_path / "images")
    rewrite(folder / "part-00001.parquet", "concept", pa.large_string())
    with pytest.raises(DataError, match=r"part-00001.parquet is damaged"):
        source(folder, small())


def test_a_caption_that_is_null_is_one_without_words(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    folder = make_images(
        tmp_path / "images",
        edit=lambda rows: [r | {"caption": None} if r["caption_id"] < 102 else r for r in rows],
    )
    batch = source(folder, small(captions_per_batch=24)).make(0)
    counted = source(folder, small(captions_per_batch=24, objective="cross-entropy",
                                   teacher=False, patch_weight=0)).make(0)  # fmt: skip
    for made in (batch, counted):
        of = dict(zip(made.caption_ids, made.labels[::3].tolist(), strict=True))
        assert of[100] == of[101] != of[102]
    assert sorted(set(counted.labels.tolist())) == list(range(23))


def test_a_part_that_went_away_is_one_line(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    folder = make_images(tmp_path / "images", parts=1)
    made = source(folder, small())
    (folder / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"cannot read .*part-00000.parquet"):
        made.make(0)


def test_more_damage_than_one_in_a_hundred_stops(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    folder = make_images(tmp_path / "images", captions=32, edit=damage((107, 2), (109, 0)))
    made = source(folder, small(views=4, captions_per_batch=32))
    listed: list[batches.DamagedImage] = []
    counted = batches.Damage(made.index, folder, listed.extend)
    with pytest.raises(DataError, match=r"got 2 of 128 read \(part.*expected at most 1%"):
        counted.add(made.make(0))
    assert sorted(d[:2] for d in listed) == [(107, 2), (109, 0)]


def test_a_caption_without_any_whole_image_gives_its_place_to_another(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    folder = make_images(tmp_path / "images", edit=damage(*((107, v) for v in range(4))))
    whole, config = make_images(tmp_path / "whole"), small()
    made, unharmed = source(folder, config), source(whole, config)
    step = next(s for s in range(6) if 107 in unharmed.make(s).caption_ids)
    batch, before = made.make(step), unharmed.make(step)
    place = before.caption_ids.index(107)
    (other,) = set(batch.caption_ids) - set(before.caption_ids)
    assert batch.caption_ids[place] == other and len(set(batch.caption_ids)) == 4
    assert sorted(d[:2] for d in batch.damaged) == [(107, v) for v in range(4)]
    # The rest of the batch, and what is drawn for the place, are as they were.
    assert torch.equal(batch.masks, before.masks) and torch.equal(batch.ids, before.ids)
    mine, theirs = batch.globals.unflatten(0, (4, 3)), before.globals.unflatten(0, (4, 3))
    assert [torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)].count(False) == 1
    assert len(set(batch.labels.tolist())) == 4
    # However many ranks there are.
    parts = [source(folder, config, rank, 2).make(step) for rank in range(2)]
    assert torch.equal(torch.cat([p.globals for p in parts]), batch.globals)
    assert parts[0].caption_ids + parts[1].caption_ids == batch.caption_ids


def test_no_place_is_taken_by_a_caption_of_the_batch(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    folder = make_images(tmp_path / "images", edit=damage(*((107, v) for v in range(4))))
    with pytest.raises(DataError, match="no image of caption 107 decodes, nor of any caption"):
        source(folder, small(captions_per_batch=24)).make(0)


def test_captions_that_take_places_are_different_ones(
    tmp_path: Path, make_images: Callable, small: Callable
) -> None:
    broken = [(100 + c, v) for c in range(0, 24, 2) for v in range(4)]
    made = source(make_images(tmp_path / "images", edit=damage(*broken)), small())
    for step in range(6):
        batch = made.make(step)
        assert len(set(batch.caption_ids)) == 4
        assert all(c % 2 for c in batch.caption_ids)


@pytest.mark.parametrize("column", ["image", "caption"])
def test_a_part_that_cannot_be_read_is_one_line(
    tmp_path: Path, make_images: Callable, small: Callable, column: str
) -> None:
    folder = make_images(tmp_path / "images", parts=1)
    part = folder / "part-00000.parquet"
    meta = pq.ParquetFile(part).metadata.row_group(1)
    place = [meta.column(i).path_in_schema.split(".")[0] for i in range(meta.num_columns)]
    chunk = meta.column(place.index(column))
    data = bytearray(part.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + 40] = bytes(40)
    part.write_bytes(data)
    with pytest.raises(DataError, match=r"cannot read .*part-00000.parquet"):
        for step in range(6):
            source(folder, small()).make(step)


def test_images_smaller_than_a_crop_are_enlarged_and_this_is_said(
    tmp_path: Path, make_images: Callable, small: Callable, capsys: pytest.CaptureFixture
) -> None:
    folder = make_images(tmp_path / "images", size=12)
    batch = source(folder, small()).make(0)
    assert batch.globals.shape[-2:] == (32, 32) and batch.locals.shape[-2:] == (16, 16)
    assert "images of 12 px are enlarged to crops of 32 px" in capsys.readouterr().err


def test_crops_of_the_images_size_are_no_reason_to_warn(
    images: Path, small: Callable, capsys: pytest.CaptureFixture
) -> None:
    assert source(images, small(image_size=48)).index.smallest == 48
    assert not capsys.readouterr().err


def test_images_stream_from_a_uri(images: Path, small: Callable) -> None:
    there = storage.place("memory://train-test/images")
    there.mkdir(parents=True, exist_ok=True)
    for file in images.iterdir():
        (there / file.name).write_bytes(file.read_bytes())
    made = source(there, small()).make(1)
    assert same(made, source(images, small()).make(1))


class OfOneProcess(MemoryFileSystem):
    """Memory that refuses to work in a fork of the process it was made in, as S3's does."""

    protocol = "ofoneprocess"
    store, pseudo_dirs = MemoryFileSystem.store, MemoryFileSystem.pseudo_dirs

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.made_in = os.getpid()

    def isfile(self, path: str) -> bool:
        if os.getpid() != self.made_in:
            raise RuntimeError("This class is not fork-safe")
        return super().isfile(path)


@pytest.mark.filterwarnings("ignore:.*filesystem not explicitly implemented")
def test_loader_processes_read_from_a_uri_too(images: Path, small: Callable) -> None:
    fsspec.register_implementation("ofoneprocess", OfOneProcess, clobber=True)
    there = storage.place("ofoneprocess://train-test/images")
    there.mkdir(parents=True, exist_ok=True)
    for file in images.iterdir():
        (there / file.name).write_bytes(file.read_bytes())
    loaded = list(batches.load(source(there, small()), range(3), workers=2))
    expected = source(images, small())
    assert [same(batch, expected.make(batch.step)) for batch in loaded] == [True] * 3


def test_no_part_is_opened_to_start(images: Path, small: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    for part in folder.glob("part-*"):
        part.write_bytes(bytes(part.stat().st_size))
    assert len(source(folder, small()).index) == 24


def test_the_index_tells_what_the_parts_hold(tmp_path: Path, make_images: Callable) -> None:
    """Gaps in the ids and captions with other numbers of views: each row is found again."""

    def edit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [r for r in rows if r["caption_id"] not in (103, 104, 123)
                and not (r["caption_id"] in (101, 110) and r["view"] > 1)]  # fmt: skip

    folder = make_images(tmp_path / "images", parts=3, edit=edit)
    index = ImageIndex(open_dataset(folder, "images"))
    columns = ["caption_id", "view"]
    tables = [pq.read_table(p, columns=columns) for p in open_dataset(folder, "images").paths()]
    order = np.random.default_rng(0).permutation(len(index))
    at = index.locate(order)
    assert sorted(at.caption_id) == sorted({i for t in tables for i in t["caption_id"].to_pylist()})
    starts = np.cumsum([0, *map(len, tables)])
    for part, row, views, caption_id, image in zip(
        at.part, at.row, at.views, at.caption_id, at.image, strict=True
    ):
        own = tables[part].slice(row, views)
        assert own["caption_id"].to_pylist() == [caption_id] * views
        assert own["view"].to_pylist() == [*range(views)]
        assert tables[part]["caption_id"].to_pylist().count(caption_id) == views
        assert image == starts[part] + row
    assert (len(index), index.images, index.fewest, index.smallest) == (21, starts[-1], 2, 48)
    assert list(index.caption_ids_with_fewer(4)) == [101, 110]
