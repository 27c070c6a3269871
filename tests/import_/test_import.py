"""Sets made elsewhere become images/1: the reference's CSV, webdataset tars, Parquet."""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_folders import contents, facts, image, reference_set, rejected, rows_of, tar_of
from killing import kill_until_done

from synclr_cli.errors import DataError, UsageError
from synclr_cli.import_ import run as import_run
from synclr_cli.import_.run import run


def test_the_references_csv_and_parallel_folders(tmp_path):
    out = run(reference_set(tmp_path), tmp_path / "out", captions_per_part=2)
    rows = rows_of(out)
    assert [(r["caption_id"], r["view"]) for r in rows] == [
        (c, v) for c in range(5) for v in range(3)
    ]
    assert rows[4]["image"]["bytes"] == image(11) and rows[4]["caption"] == "a fox, number 1"
    assert (rows[0]["width"], rows[0]["height"]) == (16, 12)
    manifest = facts(out)
    assert manifest["views"] == 3 and len(list(out.glob("part-*"))) == 3


def test_named_folders_are_the_views(tmp_path):
    csv = reference_set(tmp_path)
    out = run(csv, tmp_path / "out", roots=[tmp_path / "seed2", tmp_path / "seed0"])
    assert [r["image"]["bytes"] for r in rows_of(out)[:2]] == [image(2), image(0)]


def test_webdataset_tars_are_grouped_by_caption(tmp_path):
    (tmp_path / "tars").mkdir()
    for shard in range(2):
        members = {}
        for i in range(4):
            members[f"{shard}{i:04}.jpg"] = image(shard * 4 + i, "JPEG")
            if i % 2:
                members[f"{shard}{i:04}.txt"] = b"a bee\n"
            else:
                members[f"{shard}{i:04}.json"] = json.dumps({"caption": "a fox"}).encode()
        tar_of(tmp_path / "tars" / f"{shard:05}.tar", members)
    rows = rows_of(run(tmp_path / "tars", tmp_path / "out"))
    assert [(r["caption"], r["view"]) for r in rows] == [
        (c, v) for c in ("a fox", "a bee") for v in range(4)
    ]
    assert rows[5]["image"]["bytes"] == image(3, "JPEG")


def test_a_parquet_with_repeated_captions(tmp_path):
    cells = [{"bytes": image(i), "path": None} for i in range(6)]
    texts = ["a fox", "a bee", "a fox", "a bee", "an ant", "a fox"]
    pq.write_table(
        pa.table({"text": texts, "image": cells}), tmp_path / "x.parquet", row_group_size=2
    )
    out = run(tmp_path / "x.parquet", tmp_path / "out")
    assert [r["caption"] for r in rows_of(out)] == ["a fox"] * 3 + ["a bee"] * 2
    assert rows_of(out)[2]["image"]["bytes"] == image(5)
    assert [(e["caption"], e["views"]) for e in rejected(out)] == [("an ant", 1)]


def test_what_is_missing_or_does_not_decode_is_listed(tmp_path):
    csv = reference_set(tmp_path)
    (tmp_path / "seed1" / "shard" / "0.png").write_bytes(b"no image")
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
        (lambda d: (d / "x.csv").write_bytes(b"a.png,\xff\n") and d / "x.csv", "not a UTF-8"),
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
        (root / f"{i}.png").write_bytes(image(i))
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
        ("a bee", 0, image(0)), ("a bee", 1, image(2)),
        ("a fox", 0, image(1)), ("a fox", 1, image(3)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.png,a bee, on a rose\n", "line 1: got 3 fields, expected path,caption. Put a caption"),
        ("0.png;a bee\n", "line 1: got 1 fields"),
        ('0.png,"a bee\n', "is not a UTF-8 CSV file"),
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


def test_an_import_that_fails_leaves_the_old_result(tmp_path, synclr):
    csv = reference_set(tmp_path / "set")
    out = run(csv, tmp_path / "x")
    before = contents(out)
    outcome = synclr("import", csv, "--root", tmp_path / "nope", "-o", out, "--overwrite")
    assert outcome.code == 3 and contents(out) == before
    members = {
        f"{i}.{kind}": image(i) if kind == "png" else b"a fox"
        for i in range(9)
        for kind in ("png", "txt")
    }
    whole = tar_of(tmp_path / "a.tar", members)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:3000])
    outcome = synclr("import", tmp_path / "cut.tar", "-o", out, "--overwrite")
    assert outcome.code == 3 and contents(out) == before
    assert synclr("import", whole, "-o", out, "--overwrite").code == 0
    assert [r["caption"] for r in rows_of(out)] == ["a fox"] * 9
    assert not (out / ".new").exists()


def test_a_truncated_part_is_noticed_at_the_next_call(tmp_path, synclr):
    csv = reference_set(tmp_path / "set")
    out = run(csv, tmp_path / "x")
    whole, part = contents(out), out / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    outcome = synclr("import", csv, "-o", out)
    assert outcome.code == 3 and "delete it; the same synclr import" in outcome.error_line.lower()
    part.unlink()
    assert synclr("import", csv, "-o", out).code == 0 and contents(out) == whole


def test_a_folder_of_images_has_its_captions_from_names(tmp_path):
    root = tmp_path / "photos"
    names = (
        "red_fox/1.png",
        "red_fox/2.png",
        "a bee (1).png",
        "a bee (2).png",
        "c/x.png",
        "c/y.png",
    )
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(i))
    for name in ("c/x.txt", "c/y.txt"):
        (root / name).write_text("a chair in the sun\n")
    rows = rows_of(run(root, tmp_path / "out"))
    assert sorted((r["caption"], r["concept"], r["image"]["bytes"]) for r in rows) == sorted(
        (caption, concept, image(i))
        for i, (caption, concept) in enumerate(
            [("red fox", "red fox")] * 2
            + [("a bee", "a bee")] * 2
            + [("a chair in the sun", "")] * 2
        )
    )


def test_sources_of_other_bytes_and_equal_sizes_are_told_apart(tmp_path, monkeypatch):
    def tars(first: int) -> Path:
        for i in range(2):
            members = {f"{j}.{k}": image(first + j, "BMP") if k == "png" else b"a fox"
                       for j in range(2) for k in ("png", "txt")}  # fmt: skip
            (tmp_path / "tars").mkdir(exist_ok=True)
            tar_of(tmp_path / "tars" / f"{i}.tar", members)
        return tmp_path / "tars"

    out = run(tars(0), tmp_path / "out")
    sizes = [p.stat().st_size for p in sorted((tmp_path / "tars").iterdir())]
    run(tars(5), tmp_path / "other")
    assert [p.stat().st_size for p in sorted((tmp_path / "tars").iterdir())] == sizes
    with pytest.raises(UsageError, match="the input tars differ"):
        run(tmp_path / "tars", out)
    monkeypatch.setattr(import_run, "DIGESTED_BYTES", 0)  # as if it were too large to be read
    out = run(tars(5), tmp_path / "large")
    assert run(tmp_path / "tars", out) == out
    for tar in (tmp_path / "tars").iterdir():
        os.utime(tar, (1, 1))
    with pytest.raises(UsageError, match="the input tars differ"):
        run(tmp_path / "tars", out)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_images_outside_of_the_source_are_refused_unless_allowed(tmp_path, name):
    root = tmp_path / "set"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(image(7))
    (root / "a").mkdir()
    csv = write_csv(root, f"0.png,a bee\n{name},a bee\n")
    with pytest.raises(DataError, match=r"list.csv line 2: the image .* lies outside.*--allow-out"):
        run(csv, tmp_path / "out")
    table = pa.table(
        {"caption": ["a bee"] * 2, "image": [{"bytes": None, "path": p} for p in ("0.png", name)]}
    )
    pq.write_table(table, root / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet row group 0, row 1: .* lies outside"):
        run(root / "x.parquet", tmp_path / "out")
    if not name.startswith("/"):
        for source in (csv, root / "x.parquet"):
            rows = rows_of(run(source, tmp_path / source.name, allow_outside=True))
            assert [r["image"]["bytes"] for r in rows] == [image(0), image(7)]


def test_a_member_of_twenty_gigabytes_is_left_out(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(2):
            for name, data in ((f"{i}.png", image(i)), (f"{i}.txt", b"a fox")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("2.png")
        info.size = 20 << 30
        tar.addfile(info)
        start = tar.offset
    with path.open("r+b") as f:  # a file with a hole; then the last sample's text
        f.seek(start + (20 << 30))
        text = tarfile.TarInfo("2.txt")
        text.size = 5
        f.write(text.tobuf() + b"a fox".ljust(512, b"\0") + bytes(1024))
    out = run(path, tmp_path / "out")
    assert [r["image"]["bytes"] for r in rows_of(out)] == [image(0), image(1)]
    assert [(e["view"], e["reason"]) for e in rejected(out)] == [(2, "too large")]


def _job(source: Path, out: Path, overwrite: bool) -> None:
    run(source, out, captions_per_part=2, overwrite=overwrite and not (out / "done").exists())


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_import_ends_as_if_it_had_not_been_killed(tmp_path, overwrite):
    source = reference_set(tmp_path / "set", captions=24)
    (tmp_path / "set" / "seed1" / "shard" / "3.png").write_bytes(b"no image")
    whole = contents(run(source, tmp_path / "whole", captions_per_part=2))
    out = tmp_path / "killed"
    if overwrite:
        run(source, out, captions_per_part=3)
    job = functools.partial(_job, source, out, overwrite)
    assert kill_until_done(job, 0.4, seed=overwrite) > 0
    assert contents(out) == whole
