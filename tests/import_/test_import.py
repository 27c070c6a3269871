"""Sets made elsewhere become images/1: the reference's CSV, webdataset tars, Parquet."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_folders import contents, facts, picture, reference_set, rejected, rows_of, tar_of

from synclr_cli.errors import DataError, UsageError
from synclr_cli.import_.run import run


def test_the_references_csv_and_parallel_folders(tmp_path):
    out = run(reference_set(tmp_path), tmp_path / "out", captions_per_part=2)
    rows = rows_of(out)
    assert [(r["caption_id"], r["view"]) for r in rows] == [
        (c, v) for c in range(5) for v in range(3)
    ]
    assert rows[4]["image"]["bytes"] == picture(11) and rows[4]["caption"] == "a fox, number 1"
    assert (rows[0]["width"], rows[0]["height"]) == (16, 12)
    manifest = facts(out)
    assert manifest["views"] == 3 and len(list(out.glob("part-*"))) == 3


def test_named_folders_are_the_views(tmp_path):
    csv = reference_set(tmp_path)
    out = run(csv, tmp_path / "out", roots=[tmp_path / "seed2", tmp_path / "seed0"])
    assert [r["image"]["bytes"] for r in rows_of(out)[:2]] == [picture(2), picture(0)]


def test_webdataset_tars_are_grouped_by_caption(tmp_path):
    (tmp_path / "tars").mkdir()
    for shard in range(2):
        members = {}
        for i in range(4):
            members[f"{shard}{i:04}.jpg"] = picture(shard * 4 + i, "JPEG")
            if i % 2:
                members[f"{shard}{i:04}.txt"] = b"a bee\n"
            else:
                members[f"{shard}{i:04}.json"] = json.dumps({"caption": "a fox"}).encode()
        tar_of(tmp_path / "tars" / f"{shard:05}.tar", members)
    rows = rows_of(run(tmp_path / "tars", tmp_path / "out"))
    assert [(r["caption"], r["view"]) for r in rows] == [
        (c, v) for c in ("a fox", "a bee") for v in range(4)
    ]
    assert rows[5]["image"]["bytes"] == picture(3, "JPEG")


def test_a_parquet_with_repeated_captions(tmp_path):
    cells = [{"bytes": picture(i), "path": None} for i in range(6)]
    texts = ["a fox", "a bee", "a fox", "a bee", "an ant", "a fox"]
    pq.write_table(
        pa.table({"text": texts, "image": cells}), tmp_path / "x.parquet", row_group_size=2
    )
    out = run(tmp_path / "x.parquet", tmp_path / "out")
    assert [r["caption"] for r in rows_of(out)] == ["a fox"] * 3 + ["a bee"] * 2
    assert rows_of(out)[2]["image"]["bytes"] == picture(5)
    assert [(e["caption"], e["views"]) for e in rejected(out)] == [("an ant", 1)]


def test_what_is_missing_or_does_not_decode_is_listed(tmp_path):
    csv = reference_set(tmp_path)
    (tmp_path / "seed1" / "shard" / "0.png").write_bytes(b"no picture")
    (tmp_path / "seed2" / "shard" / "4.png").unlink()
    out = run(csv, tmp_path / "out")
    assert [(e["caption_id"], e["view"], e["reason"]) for e in rejected(out)] == [
        (0, 1, "does not decode"), (4, 2, "missing"),
    ]  # fmt: skip
    assert len(rows_of(out)) == 13


def test_an_import_continues_and_is_the_same(tmp_path):
    csv = reference_set(tmp_path)
    out = run(csv, tmp_path / "out", captions_per_part=2)
    whole = contents(out)
    (out / "_manifest.json").unlink()
    (out / "part-00001.parquet").unlink()
    assert contents(run(csv, out, captions_per_part=2)) == whole
    with pytest.raises(UsageError, match="captions_per_part differ"):
        run(csv, out, captions_per_part=3)


def test_an_imported_set_is_shown_and_counted_like_a_rendered_one(tmp_path):
    from synclr_cli.render.report import report
    from synclr_cli.render.sheet import contact_sheet

    out = run(reference_set(tmp_path), tmp_path / "out")
    assert report(out)["views"] == {"3": 5} and contact_sheet(out, tmp_path / "s.png").is_file()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "absent.csv", "no file or folder"),
        (lambda d: (d / "x.txt").write_text("x") and d / "x.txt", "cannot be imported"),
        (lambda d: (d / "x.csv").write_text("a.png,words\n") and d / "x.csv", "no folder beside"),
        (lambda d: (d / "x.csv").write_bytes(b"a.png,\xff\n") and d / "x.csv", "no UTF-8"),
        (lambda d: (d / "x.csv").write_text("image,caption\n") and d / "x.csv", "no image with"),
        (lambda d: (d / "x.tar").write_bytes(b"junk" * 300) and d / "x.tar", "is not a tar file"),
        (
            lambda d: (d / "x.parquet").write_bytes(b"junk") and d / "x.parquet",
            "cannot read .*x.parquet",
        ),
    ],
)
def test_a_source_that_is_none_is_one_line(tmp_path, make, message):
    with pytest.raises(DataError, match=message) as caught:
        run(make(tmp_path), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_set_of_which_nothing_is_left_is_refused_and_leaves_nothing(tmp_path):
    csv = reference_set(tmp_path / "set", views=1)
    with pytest.raises(DataError, match=r"none of its 5 captions has 2 images.*--root"):
        run(csv, tmp_path / "out", captions_per_part=2)
    assert not (tmp_path / "out").exists()


def write_csv(root: Path, text: str) -> Path:
    for i in range(4):
        (root / f"{i}.png").write_bytes(picture(i))
    (root / "list.csv").write_text(text, encoding="utf-8")
    return root / "list.csv"


@pytest.mark.parametrize(
    "text",
    [
        "0.png,a bee\n1.png,a fox\n2.png,a bee\n3.png,a fox\n",
        "\ufeff0.png,a bee\n1.png,a fox\n2.png,a bee\n3.png,a fox\n",
        "number,Caption,file_name\n0,a bee,0.png\n1,a fox,1.png\n2,a bee,2.png\n3,a fox,3.png\n",
    ],
)
def test_a_csv_with_repeated_captions(tmp_path, text):
    rows = rows_of(run(write_csv(tmp_path, text), tmp_path / "out"))
    assert [(r["caption"], r["view"], r["image"]["bytes"]) for r in rows] == [
        ("a bee", 0, picture(0)), ("a bee", 1, picture(2)),
        ("a fox", 0, picture(1)), ("a fox", 1, picture(3)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.png,a bee, on a rose\n", "line 1: got 3 fields, expected path,caption. Put a caption"),
        ("0.png;a bee\n", "line 1: got 1 fields"),
        ('0.png,"a bee\n', "is no UTF-8 CSV file"),
    ],
)
def test_a_csv_that_says_something_else_is_one_line(tmp_path, text, says):
    with pytest.raises(DataError, match=says):
        run(write_csv(tmp_path, text), tmp_path / "out")


def test_no_row_of_a_csv_is_dropped_silently(tmp_path):
    csv = write_csv(tmp_path, "0.png,a bee\n1.png,a bee\n2.xyz,a bee\n3.png,a bee\n")
    out = run(csv, tmp_path / "out")
    assert [(r["view"], r["reason"]) for r in rejected(out)] == [(2, "missing")]


def test_other_roots_are_another_import(tmp_path):
    csv = reference_set(tmp_path)
    roots = [tmp_path / f"seed{v}" for v in range(3)]
    out = run(csv, tmp_path / "out", roots=roots[:2])
    with pytest.raises(UsageError, match="roots differ"):
        run(csv, out, roots=roots)


def test_a_lost_part_is_imported_again_and_a_foreign_one_left_alone(tmp_path):
    source, out = reference_set(tmp_path), tmp_path / "out"
    run(source, out, captions_per_part=2)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    (out / "part-00000.parquet").unlink()
    run(source, out, captions_per_part=2)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    mine = tmp_path / "other" / "part-mine.parquet"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(UsageError, match=r"was not made by synclr here"):
        run(source, mine.parent, overwrite=True)
    assert mine.read_text() == "precious"


def test_an_import_onto_its_source_is_refused(tmp_path, monkeypatch):
    out = run(reference_set(tmp_path), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="holds the source itself"):
        run(out, Path("out"), overwrite=True)  # the same place, written otherwise
    before = contents(out)
    for overwrite in (True, False):
        with pytest.raises(UsageError, match="holds the source itself"):
            run(out, out, overwrite=overwrite)
    assert contents(out) == before
