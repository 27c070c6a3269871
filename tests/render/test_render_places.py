"""Captions are read in pieces, and they and the images may lie at any fsspec URI."""

from __future__ import annotations

import shutil
import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_folders import contents, facts, image, reference_set, rows_of, tar_of
from test_render_run import render_config

from synclr_cli.data import storage
from synclr_cli.data.manifest import open_dataset
from synclr_cli.errors import DataError
from synclr_cli.import_ import run as import_run
from synclr_cli.render import captions_reader
from synclr_cli.render.captions_reader import CaptionsReader
from synclr_cli.render.report import page, report
from synclr_cli.render.run import run
from synclr_cli.render.sheet import contact_sheet


@pytest.fixture
def elsewhere():
    """Give the URI of a folder in memory that no other test has."""
    name = f"memory://{uuid.uuid4().hex}"
    yield name
    fsspec.filesystem("memory").rm(name, recursive=True)


def test_captions_are_found_wherever_they_lie_in_the_file(captions_file, monkeypatch):
    monkeypatch.setattr(captions_reader, "BATCH_ROWS", 5)
    captions = captions_file(100)  # row groups of 16
    every = pq.read_table(captions, columns=["caption_id", "caption", "concept"]).to_pylist()
    found = CaptionsReader(captions, 254)
    assert found.count == 100 and found.concepts == sorted({r["concept"] for r in every})
    for start, stop in ((0, 7), (7, 30), (90, 100), (31, 33), (0, 100), (99, 120), (16, 32)):
        assert found.rows(start, stop) == every[start:stop]
    assert CaptionsReader(captions, 3).concepts is None


def test_captions_are_decoded_a_piece_at_a_time(captions_file, monkeypatch):
    monkeypatch.setattr(captions_reader, "BATCH_ROWS", 5)
    found = CaptionsReader(captions_file(100), 254)
    decoded = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(*arguments, **keywords):
        for piece in iter_batches(*arguments, **keywords):
            decoded.append(len(piece))
            yield piece

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    for start in range(0, 100, 4):
        found.rows(start, start + 4)
    assert sum(decoded) == 100 and max(decoded) <= 5  # once from front to back


def test_a_large_file_in_disorder_is_refused(captions_file, monkeypatch):
    monkeypatch.setattr(captions_reader, "MOST_TO_SORT", 2)
    with pytest.raises(DataError, match="Sort the file by caption_id"):
        CaptionsReader(captions_file(3, ids=[4, 1, 2]), 254)


def test_a_row_without_an_id_is_refused_and_one_without_a_concept_is_painted(
    captions_file, tmp_path
):
    with pytest.raises(DataError, match="a row has no caption_id"):
        CaptionsReader(captions_file(2, ids=[None, 3]), 254)
    captions = captions_file([("a fox", "fox"), ("a bee", None)])
    source = CaptionsReader(captions, 254)
    assert [row["concept"] for row in source.rows(0, 2)] == ["fox", ""]
    assert source.concepts == ["", "fox"]  # a class of its own in the masks
    assert len(rows_of(run(render_config(), captions, tmp_path / "images"))) == 6


def test_a_row_without_a_caption_is_refused_by_its_id(captions_file):
    captions = captions_file([("a fox", "fox"), (None, "bee")], ids=[3, 8])
    with pytest.raises(DataError, match="caption_id 8 has no caption"):
        CaptionsReader(captions, 254).rows(0, 2)


def test_a_truncated_captions_file_is_one_line(captions_file, tmp_path):
    whole = captions_file(4000).read_bytes()
    damaged = bytearray(whole)
    damaged[200:900] = b"\xff" * 700
    (tmp_path / "damaged.parquet").write_bytes(bytes(damaged))
    (tmp_path / "short.parquet").write_bytes(whole[: len(whole) // 2])
    for name in ("damaged", "short"):
        with pytest.raises(DataError, match="truncated") as caught:
            CaptionsReader(tmp_path / f"{name}.parquet", 254).rows(0, 4000)
        assert "\n" not in str(caught.value)


def test_captions_and_images_may_lie_elsewhere(captions_file, tmp_path, elsewhere):
    local = captions_file(9)
    there = storage.place(f"{elsewhere}/captions.parquet")
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(local.read_bytes())
    config = render_config(duplicate_bits=24, redraws=1, least_views=1)
    wanted = run(config, local, tmp_path / "images")
    out = run(config, there, storage.place(f"{elsewhere}/images"))
    assert contents(out) == contents(wanted)
    assert report(out) == report(wanted)
    sheets = [contact_sheet(f, tmp_path / name) for f, name in ((out, "a.png"), (wanted, "b.png"))]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    page(out, storage.place(f"{elsewhere}/page.html"))
    assert "<html" in storage.place(f"{elsewhere}/page.html").read_text()


def test_a_set_elsewhere_is_continued(captions_file, tmp_path, elsewhere):
    captions = captions_file(9)
    out = run(render_config(views=2), captions, storage.place(f"{elsewhere}/images"))
    (out / "_manifest.json").unlink()
    (out / "part-00001.parquet").unlink()
    run(render_config(views=3), captions, out)
    assert contents(out) == contents(run(render_config(views=3), captions, tmp_path / "images"))
    run(render_config(seed=1), captions, out, overwrite=True)
    assert open_dataset(out, "images").header.seed == 1


def test_a_set_is_imported_from_here_to_elsewhere_and_back(tmp_path, elsewhere):
    local = import_run.run(reference_set(tmp_path / "set"), tmp_path / "images")
    there = storage.place(f"{elsewhere}/images")
    import_run.run(tmp_path / "set" / "all.csv", there)
    assert contents(there) == contents(local)
    shutil.rmtree(local)
    import_run.run(storage.place(f"{elsewhere}/images"), local)
    assert len(rows_of(local)) == 15


def test_images_without_a_caption_are_counted(tmp_path, capsys):
    members = {}
    for i in range(6):
        members[f"{i}.png"] = image(i)
        if i != 3:
            members[f"{i}.txt"] = b"a fox"
    out = import_run.run(tar_of(tmp_path / "a.tar", members), tmp_path / "images")
    assert len(rows_of(out)) == 5
    assert "1 images have no caption" in capsys.readouterr().err


def test_a_caption_whose_images_lie_far_apart_is_gathered(tmp_path):
    cells = [{"bytes": image(i), "path": None} for i in range(40)]
    for name, start in (("a", 0), ("b", 20)):
        table = pa.table(
            {"caption": [f"caption {i % 10}" for i in range(20)], "image": cells[start:][:20]}
        )
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3)
    (tmp_path / "set").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").rename(tmp_path / "set" / f"{name}.parquet")
    rows = rows_of(import_run.run(tmp_path / "set", tmp_path / "images", captions_per_part=4))
    assert [r["caption"] for r in rows] == [f"caption {c}" for c in range(10) for _ in range(4)]
    wanted = [image(i) for c in range(10) for i in (c, c + 10, c + 20, c + 30)]
    assert [r["image"]["bytes"] for r in rows] == wanted
    manifest = facts(tmp_path / "images")
    assert manifest["views"] == 4
