"""Anybody's captions can be rendered: Parquet, CSV, TSV and text; what cannot is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_folders import contents, rows_of
from test_render_run import render_config

from synclr_cli.data import artifacts, storage
from synclr_cli.data.manifest import open_dataset
from synclr_cli.data.shards import ShardedDataset
from synclr_cli.errors import DataError
from synclr_cli.render import captions_reader
from synclr_cli.render.captions_reader import CaptionsReader
from synclr_cli.render.run import run

TEXTS = ["a red fox in the snow", 'a "blue" bench, wet', "eine Brücke über den Fluß"]


def write(path: Path, content: str | bytes | pa.Table) -> Path:
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def quoted(texts: list[str]) -> list[str]:
    return ['"' + text.replace('"', '""') + '"' for text in texts]


def csv_of(*rows: str) -> str:
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", pa.table({"caption": TEXTS})),
        ("a.parquet", pa.table({"n": [1, 2, 3], "caption": pa.array(TEXTS).cast("large_string")})),
        ("a.parquet", pa.table({"caption": pa.array(TEXTS).dictionary_encode()})),
        ("noname", pa.table({"caption": TEXTS})),
        ("a.csv", csv_of("caption", *quoted(TEXTS))),
        ("a.csv", csv_of("n,Caption ,url", *(f"7,{t},x" for t in quoted(TEXTS)))),
        ("a.csv", "\ufeff" + csv_of("caption", *quoted(TEXTS)).replace("\n", "\r\n")),
        ("a.tsv", csv_of("caption\tn", *(f"{t}\t1" for t in quoted(TEXTS)))),
        ("a.txt", csv_of(*TEXTS)),
        ("a.txt", "\ufeff" + "\r\n".join(TEXTS) + "\r\n\r\n\n"),
    ],
)  # fmt: skip
def test_captions_without_ids_are_numbered_by_row(tmp_path, name, content):
    reader = CaptionsReader(write(tmp_path / name, content), 254)
    assert reader.rows(0, 9) == [
        {"caption_id": i, "caption": text, "concept": ""} for i, text in enumerate(TEXTS)
    ]
    assert reader.rows(1, 2)[0]["caption"] == TEXTS[1] and reader.concepts == [""]
    assert reader.parent == {
        "name": name, "digest": storage.digest(tmp_path / name), "header": None,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ids_and_concepts_of_others_are_kept_and_rows_sorted_by_id(tmp_path, kind):
    columns = {"concept": ["fox", "", "bridge"], "caption_id": [70, 5, 9], "caption": TEXTS}
    if kind == "csv":
        lines = [f"{c},{i},{t}" for c, i, t in zip(*list(columns.values())[:2], quoted(TEXTS))]  # noqa: B905
        content = csv_of("concept,caption_id,caption", *lines)
    else:
        content = pa.table(columns).set_column(1, "caption_id", pa.array([70, 5, 9], pa.uint16()))
    reader = CaptionsReader(write(tmp_path / f"a.{kind}", content), 254)
    assert [tuple(row.values()) for row in reader.rows(0, 3)] == [
        (5, TEXTS[1], ""), (9, TEXTS[2], "bridge"), (70, TEXTS[0], "fox"),
    ]  # fmt: skip
    assert reader.concepts == ["", "bridge", "fox"]


def test_captions_that_look_like_numbers_or_nothing_are_text(tmp_path):
    texts = ["17", "NA", "null", "1e3", "true"]
    reader = CaptionsReader(write(tmp_path / "a.csv", csv_of("caption", *texts)), 254)
    assert [row["caption"] for row in reader.rows(0, 5)] == texts


def test_a_caption_may_go_over_several_lines_of_a_csv(tmp_path):
    reader = CaptionsReader(write(tmp_path / "a.csv", 'caption\n"a fox,\nasleep"\n'), 254)
    assert reader.rows(0, 1)[0]["caption"] == "a fox,\nasleep"


def test_captions_of_synclr_are_a_parent_with_their_header(captions_file):
    captions = captions_file(2)
    _, header = artifacts.open_parquet(captions, "captions")
    assert CaptionsReader(captions, 254).parent["header"]["engine"] == header.engine == "test:"


def test_real_captions_become_images_and_the_same_command_continues(tmp_path):
    texts = [f"a photo of thing number {i}" for i in range(10)]
    captions = write(tmp_path / "real.txt", csv_of(*texts))
    out = run(render_config(), captions, tmp_path / "images")
    assert [r["caption"] for r in rows_of(out)][::3] == texts
    whole = contents(out)
    (out / "part-00001.parquet").unlink()
    assert contents(run(render_config(), captions, out)) == whole


def test_a_large_csv_is_read_anywhere_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(captions_reader, "BATCH_ROWS", 700)
    texts = [f"caption {i} of some length" for i in range(40_000)]  # three row groups of the copy
    reader = CaptionsReader(write(tmp_path / "a.csv", csv_of("caption", *texts)), 254)
    for start in (39_000, 0, 16_380, 16_384, 32_760):
        got = reader.rows(start, start + 900)
        assert [r["caption"] for r in got] == texts[start : start + 900]
        assert [r["caption_id"] for r in got] == [*range(start, min(start + 900, 40_000))]


BAD = {
    "no column": ("a.csv", "text,n\na fox,1\n", "columns: got text, n, expected one called capt"),
    "two columns": ("a.csv", "caption,caption\na,b\n", "2 columns are called caption"),
    "empty file": ("a.csv", "", "cannot read"),
    "only a head": ("a.csv", "caption\n", "holds no captions"),
    "empty cell": ("a.csv", "caption,n\na fox,1\n,2\n", "row 2 has no caption"),
    "blank cell": ("a.csv", 'caption,n\na fox,1\n"  ",2\n', "row 2 has no caption"),
    "ragged": ("a.csv", "caption\na fox, asleep\n", "Expected 1 columns, got 2"),
    "open quote": ("a.csv", 'caption\n"a fox\na bee\n', "a double quote is not closed"),
    "latin 1": ("a.csv", "caption\nBrücke\n".encode("latin-1"), "UTF"),
    "utf 16": ("a.csv", "caption\nfox\n".encode("utf-16"), "is not UTF-8 text"),
    "long": ("a.csv", f"caption\n{'x' * 2_000_000}\n", "row 1 has a caption of more than 10,000"),
    "ids of text": ("a.csv", "caption_id,caption\nx1,a fox\n", "int64"),
    "ids twice": ("a.csv", "caption_id,caption\n4,a\n4,b\n", "caption_id 4 occurs twice"),
    "no text": ("a.txt", "", "holds no captions"),
    "blank lines": ("a.txt", "\n\n \n", "holds no captions"),
    "a blank line": ("a.txt", "a fox\n\na bee\n", "row 2 has no caption"),
    "latin 1 text": ("a.txt", "Brücke\n".encode("latin-1"), "is not UTF-8 text"),
    "a long line": ("a.txt", "a\n" + "x" * 2_000_000, "row 2 has a caption of more than 10,000"),
    "another kind": ("a.docx", b"PK\x03\x04", "is not a set of captions"),
    "junk": ("a.parquet", b"junk" * 9, "is not a Parquet file, or truncated"),
    "null": ("a.parquet", pa.table({"caption": ["a", None]}), "row 2 has no caption"),
    "all null": ("a.parquet", pa.table({"caption": pa.nulls(2)}), "row 1 has no caption"),
    "lists": ("a.parquet", pa.table({"caption": [["a"]]}), "column caption: got list"),
    "numbers": ("a.parquet", pa.table({"caption": [1]}), "got int64, expected text"),
    "float ids": (
        "a.parquet", pa.table({"caption": ["a"], "caption_id": [1.0]}), "expected whole numbers",
    ),
    "huge ids": (
        "a.parquet",
        pa.table({"caption": ["a"], "caption_id": pa.array([2**64 - 1], pa.uint64())}),
        "column caption_id",
    ),
    "null ids": (
        "a.parquet", pa.table({"caption": ["a"], "caption_id": pa.nulls(1, pa.int64())}), "a row",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_captions_that_cannot_be_rendered_are_one_line(tmp_path, synclr, name):
    file, content, message = BAD[name]
    path = write(tmp_path / file, content)
    outcome = synclr("render", path, "--engine", "procedural:", "-o", tmp_path / "images")
    assert outcome.code == 3 and len(outcome.error_line) < 400, outcome
    with pytest.raises(DataError, match=message):
        CaptionsReader(path, 254)
    assert not (tmp_path / "images").exists()


def test_images_of_synclr_are_no_captions(captions_file, tmp_path):
    out = run(render_config(), captions_file(2), tmp_path / "images")
    with pytest.raises(DataError, match=r"got images/\d, expected captions"):
        CaptionsReader(out / "part-00000.parquet", 254)


def test_ids_beyond_the_row_numbers_seed_other_images(tmp_path):
    """A caption's images depend on its id: the same text by another id looks otherwise."""
    folders = []
    for name, ids in (("a", [0, 1]), ("b", [0, 900])):
        table = pa.table({"caption_id": ids, "caption": ["a fox", "a bee"]})
        captions = write(tmp_path / f"{name}.parquet", table)
        folders.append(rows_of(run(render_config(), captions, tmp_path / name)))
    same = [
        np.array_equal(a["image"]["bytes"], b["image"]["bytes"])
        for a, b in zip(*folders, strict=True)
    ]
    assert same == [True] * 3 + [False] * 3


def test_a_folder_of_captions_is_read_across_its_parts(captions_file, tmp_path, monkeypatch):
    table = pq.read_table(captions_file(50))
    header = artifacts.Header("captions", config={"count": 50}, engine="test:")
    folder = tmp_path / "captions"
    dataset = ShardedDataset(folder, "captions", header)
    with dataset.claim():
        for index in range(5):
            dataset.write(index, table.slice(11 * index, 11), rows_per_group=4)
        with pytest.raises(DataError, match="holds 5 parts but is not finished"):
            CaptionsReader(folder, 254)
        dataset.finish(5)
    monkeypatch.setattr(captions_reader, "BATCH_ROWS", 3)
    expected = table.select(["caption_id", "caption", "concept"]).to_pylist()
    reader = CaptionsReader(folder, 254)
    for start, stop in ((0, 50), (40, 60), (10, 12), (0, 1), (21, 49), (49, 50)):
        assert reader.rows(start, stop) == expected[start:stop]
    assert reader.concepts == sorted(set(table["concept"].to_pylist()))
    assert CaptionsReader(folder, 3).concepts is None
    assert reader.parent["digest"] == open_dataset(folder, "captions").digest
    for path in folder.glob("part-*"):
        path.write_bytes(bytes(path.stat().st_size))
    assert CaptionsReader(folder, 254).count == 50  # no part is opened to start
