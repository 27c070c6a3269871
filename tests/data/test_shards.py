"""A folder of parts: whole or not finished, whoever dies, shares, grows, overwrites, damages it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from killing import kill_until_done

from synclr_cli.data import artifacts, manifest, part_layout, storage
from synclr_cli.data.manifest import open_dataset, part_name
from synclr_cli.data.shards import ShardedDataset
from synclr_cli.errors import DataError, UsageError

ROWS = 5  # of a part


def table_of(index: int, seed: int = 0) -> pa.Table:
    ids = np.arange(index * ROWS, (index + 1) * ROWS)
    columns = {
        "caption_id": ids,
        "attempt": np.zeros(ROWS, np.int32),
        "caption": [f"seed {seed}, caption {i}" for i in ids],
        "seed": ids,
    } | {name: ["x"] * ROWS for name in ("reason", "concept", "template", "companion")}
    return pa.table(columns)


def dataset(folder: Path, *, seed: int = 0, count: int = 4, **changes: object) -> ShardedDataset:
    header = artifacts.Header("rejects", {"seed": seed, "count": count}, "template:", "1.0", seed)
    return ShardedDataset(folder, "rejects", header, varying=("count",), **changes)


def make(
    folder: Path,
    *,
    seed: int = 0,
    count: int = 4,
    shard: str = "1/1",
    overwrite: bool = False,
    wait: float = 0,
    only: int | None = None,
) -> bool:
    """Make `count` parts as a command does; stop after `only` parts."""
    made = dataset(folder, seed=seed, count=count, sidecars=("_beside",))
    if not overwrite and made.state() == "finished":
        return True
    with made.claim(overwrite=overwrite, shard=shard):
        for index in made.missing(count, shard)[:only]:
            time.sleep(wait)
            made.write(index, table_of(index, seed), rows_per_group=2, facts={"mark": index})
        if only is not None:
            return False
        storage.write_json(made.work / "_beside" / "x.json", {"seed": seed})
        return made.finish(count, {"views": 3})


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    assert make(tmp_path / "whole")
    return tmp_path / "whole"


def test_a_finished_folder_tells_its_parts_without_opening_them(whole: Path) -> None:
    opened = open_dataset(whole, "rejects")
    assert [p.name for p in opened.paths()] == [part_name(i) for i in range(4)]
    assert (opened.rows, opened.captions, opened.facts) == (20, 20, {"views": 3})
    assert opened.header == dataset(whole).header
    for i, part in enumerate(manifest.facts_of(opened.parts)):
        path = whole / part.name
        assert (part.rows, part.captions, part.first, part.last) == (5, 5, 5 * i, 5 * i + 4)
        assert part.bytes == path.stat().st_size and part.digest == storage.digest(path)
        assert part.facts == {"mark": i}
    assert sorted(contents(whole)) == [
        "_beside/x.json", "_manifest.json", "_parts.pq", *(part_name(i) for i in range(4))
    ]  # fmt: skip


def test_others_read_the_folder_as_it_is(whole: Path) -> None:
    expected = list(range(20))
    assert pq.read_table(whole)["caption_id"].to_pylist() == expected
    assert pads.dataset(whole).to_table()["caption_id"].to_pylist() == expected


def test_the_names_of_parts_sort_by_their_numbers() -> None:
    numbers = [0, 7, 99_999, 100_000, 100_001, 600_000, 999_999, 1_000_000, 12_345_678]
    names = [part_name(i) for i in numbers]
    assert names == sorted(names) and names[0] == "part-00000.parquet"
    assert [manifest.number_of(name) for name in names] == numbers


def test_the_same_again_changes_nothing(whole: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in whole.iterdir()}
    assert dataset(whole).state() == "finished" and make(whole)
    assert {p.name: p.stat().st_mtime_ns for p in whole.iterdir()} == before


def test_states(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "x"
    assert dataset(folder).state() == "new"
    make(folder, only=2)
    assert dataset(folder).state() == "unfinished"
    assert dataset(folder, seed=1).state() == "other"
    with pytest.raises(DataError, match="holds 2 parts but is not finished"):
        open_dataset(folder, "rejects")
    make(folder)
    assert dataset(folder).state() == "finished"
    assert dataset(folder, count=9).state() == "unfinished"  # it can grow
    assert dataset(folder, seed=1).state() == "other"
    with pytest.raises(DataError, match="got rejects, expected images"):
        open_dataset(folder, "images")


def test_a_stopped_a_sharded_and_a_grown_folder_are_the_straight_one(
    tmp_path: Path, whole: Path
) -> None:
    make(tmp_path / "stopped", only=1)
    make(tmp_path / "stopped", only=2)
    assert make(tmp_path / "stopped")
    done = [make(tmp_path / "sharded", shard=f"{i}/3") for i in (3, 1, 2)]
    assert done == [False, False, True]
    for count in (1, 3, 4):
        assert make(tmp_path / "grown", count=count)
    for name in ("stopped", "sharded", "grown"):
        assert contents(tmp_path / name) == contents(whole), name


def test_shards_read_no_parts_of_the_others(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "shared"
    make(folder, shard="1/2")
    for part in folder.glob("part-*"):  # of the right size, but nobody can read it
        part.write_bytes(bytes(part.stat().st_size))
    assert make(folder, shard="2/2")
    assert contents(folder)["_manifest.json"] == contents(whole)["_manifest.json"]


def test_fewer_parts_than_there_are_is_refused(whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(UsageError, match=r"more parts than there are to be: got part-00003"):
        make(whole, count=3)
    assert contents(whole) == before


def test_other_settings_are_refused_with_their_keys(tmp_path: Path, whole: Path) -> None:
    make(tmp_path / "unfinished", only=1)
    (tmp_path / "listed").mkdir()
    for name, data in contents(whole).items():
        if name.startswith(("part", "_parts")):
            (tmp_path / "listed" / name).write_bytes(data)
    for folder in (whole, tmp_path / "unfinished", tmp_path / "listed"):
        with pytest.raises(UsageError, match=r"captions\.seed differ"):
            make(folder, seed=1)
    make(tmp_path / "listed")
    assert contents(tmp_path / "listed") == contents(whole)


def test_where_nothing_comes_of_it_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), dataset(tmp_path / "a" / "b").claim():
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------- two processes

HOLD = """
    import sys
    from pathlib import Path
    from test_shards import dataset
    with dataset(Path(sys.argv[1])).claim(shard=sys.argv[2]):
        print("held", flush=True)
        sys.stdin.read()
"""


def test_two_processes_do_not_make_the_same_and_other_shards_may(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(folder), "2/3"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    with other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        for shard in ("2/3", "1/1", "1/2"):
            with pytest.raises(UsageError, match="already in use by another process"):
                make(folder, shard=shard)
        assert make(folder, shard="1/3") is False
        other.kill()
    assert make(folder)  # as 2/3 was killed, its lock lies there
    assert not list(folder.glob(".*"))


# --------------------------------------------------------------------------------------- damage


def test_a_part_that_went_is_made_again(whole: Path) -> None:
    before = contents(whole)
    (whole / part_name(1)).unlink()
    with pytest.raises(DataError, match=r"lacks part-00001\.parquet. Run synclr captions again"):
        open_dataset(whole, "rejects")
    make(whole)
    assert contents(whole) == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_truncated_part_is_named_with_what_to_do(tmp_path: Path, finished: bool) -> None:
    make(tmp_path, only=None if finished else 3)
    part = tmp_path / part_name(2)
    part.write_bytes(part.read_bytes()[:-7])
    says = pytest.raises(
        DataError,
        match=r"part-00002\.parquet is damaged \(\d+ bytes, \d+ were written\)\. Delete it; the "
        "same synclr captions command makes it again",
    )
    with says:
        make(tmp_path)
    if finished:
        with says:
            open_dataset(tmp_path, "rejects")
    part.unlink()
    assert make(tmp_path)


def test_exchanged_bytes_are_found_on_request(whole: Path) -> None:
    opened = open_dataset(whole, "rejects")
    opened.verify()
    part = whole / part_name(2)
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    with pytest.raises(DataError, match=r"part-00002\.parquet is damaged \(its bytes"):
        open_dataset(whole, "rejects").verify()


def test_a_list_of_parts_of_another_run_is_refused(tmp_path: Path, whole: Path) -> None:
    make(tmp_path / "other", count=3)
    (whole / "_parts.pq").write_bytes((tmp_path / "other" / "_parts.pq").read_bytes())
    with pytest.raises(DataError, match="is not the list of parts"):
        open_dataset(whole, "rejects")
    (whole / "_parts.pq").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"_parts\.pq is damaged"):
        open_dataset(whole, "rejects")


def test_flipped_bytes_of_data_pages_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (ROWS, 4000), np.uint8)
    table = table_of(0).drop_columns("caption")
    table = table.append_column("caption", [[bytes(row).hex() for row in noise]])
    with dataset(tmp_path).claim() as made:
        made.write(0, table, rows_per_group=ROWS)
        made.finish(1)
    path = tmp_path / part_name(0)
    data = path.read_bytes()
    at = pq.ParquetFile(path).metadata.row_group(0).column(3)  # the captions
    rng = np.random.default_rng(1)
    start = min(o for o in (at.dictionary_page_offset, at.data_page_offset) if o)
    for place in rng.integers(start + 60, start + at.total_compressed_size, 40).tolist():
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(DataError, match="cannot read") as caught, artifacts.readable(path):
            storage.table(path)
        assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------- overwriting


def test_the_old_result_stays_until_the_new_one_is_whole(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "x"
    make(folder, seed=1, count=6)
    (folder / "mine.txt").write_text("precious")
    before = contents(folder)
    make(folder, overwrite=True, only=2)
    assert {k: v for k, v in contents(folder).items() if not k.startswith(".new")} == before
    assert open_dataset(folder, "rejects").header.seed == 1
    staged = (folder / ".new" / part_name(0)).stat().st_mtime_ns
    make(folder, overwrite=True, only=1)  # goes on
    assert (folder / ".new" / part_name(0)).stat().st_mtime_ns == staged
    assert make(folder, overwrite=True)
    assert contents(folder) == contents(whole) | {"mine.txt": b"precious"}


def test_an_overwriting_that_was_given_up_leaves_nothing(whole: Path) -> None:
    before = contents(whole)
    make(whole, seed=1, overwrite=True, only=2)
    make(whole)
    assert contents(whole) == before


def test_overwriting_by_one_of_several_jobs_is_refused(whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(UsageError, match="--overwrite with --shard 2/2"):
        make(whole, overwrite=True, shard="2/2")
    assert contents(whole) == before


@pytest.mark.parametrize("name", ["part-mine.parquet", "part-00001.parquet", "_manifest.json"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_synclr_did_not_make_is_left_alone(tmp_path: Path, name: str, overwrite: bool) -> None:
    mine = tmp_path / name
    mine.write_text('{"name": "an app"}')
    with pytest.raises((UsageError, DataError)):
        make(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == {name: b'{"name": "an app"}'}


def test_a_foreign_part_in_a_finished_folder_is_left_alone(whole: Path) -> None:
    mine = whole / "part-mine.parquet"
    mine.write_text("precious")
    with pytest.raises(UsageError, match=r"part-mine\.parquet was not made by synclr"):
        make(whole, seed=1, overwrite=True)
    assert mine.read_text() == "precious" and open_dataset(whole, "rejects").header.seed == 0


# --------------------------------------------------------------------------------------- kills


def _job(folder: Path, shard: str = "1/1", overwrite: bool = False) -> None:
    if overwrite and (folder / "_beside" / "x.json").is_file():
        # What a person does who looks whether the command came to its end.
        overwrite = json.loads((folder / "_beside" / "x.json").read_text()) != {"seed": 0}
    make(folder, count=12, shard=shard, overwrite=overwrite, wait=0.02)


@pytest.mark.parametrize("kind", ["straight", "shards", "overwrite"])
def test_killed_at_random_moments_it_is_the_straight_one(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "whole", count=12)
    folder, kills = tmp_path / "killed", 0
    if kind == "overwrite":
        make(folder, seed=1, count=14)
    jobs = ("1/2", "2/2") if kind == "shards" else ("1/1",)
    for number, shard in enumerate(jobs):
        job = functools.partial(_job, folder, shard, kind == "overwrite")
        kills += kill_until_done(job, 0.3, seed=number)
    assert kills > 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_swap_killed_after_any_step_is_gone_on_with(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = 0
    while True:
        folder = tmp_path / str(killed)
        make(folder, seed=1, count=6)
        steps = 0

        def counted(step, folder=folder, most=killed):
            def take(*paths):
                nonlocal steps
                steps += (folder / ".new" / "_manifest.json").is_file() or steps > 0
                if steps > most:
                    raise KeyboardInterrupt
                step(*paths)

            return take

        with monkeypatch.context() as patch:
            for name in ("move", "remove"):
                patch.setattr(storage, name, counted(getattr(storage, name)))
            try:
                make(folder, overwrite=True)
                break
            except KeyboardInterrupt:
                killed += 1
        assert killed or open_dataset(folder, "rejects").header.seed == 1
        make(folder)
        assert contents(folder) == contents(whole), killed
    assert killed > 10


# ----------------------------------------------------------------------------------- elsewhere


def test_a_folder_at_a_uri_is_made_grown_overwritten_and_read(whole: Path) -> None:
    there = storage.place(f"memory://{uuid.uuid4().hex}/x")
    try:
        make(there, only=1)
        for shard in ("1/2", "2/2"):
            make(there, count=3, shard=shard)
        assert make(there)
        opened = open_dataset(there, "rejects")
        assert opened.digest == open_dataset(whole, "rejects").digest
        assert {p.name: p.read_bytes() for p in there.iterdir() if p.is_file()} == {
            name: data for name, data in contents(whole).items() if "/" not in name
        }
        make(there, seed=1, overwrite=True, only=2)
        assert open_dataset(there, "rejects").header.seed == 0
        assert make(there, seed=1, overwrite=True)
        assert open_dataset(there, "rejects").header.seed == 1
        assert sorted(p.name for p in there.iterdir()) == sorted(p.name for p in whole.iterdir())
        assert storage.read_json(there / "_beside" / "x.json") == {"seed": 1}
    finally:
        fsspec.filesystem("memory").store.clear()


def test_a_revision_is_kept_by_who_does_not_know_it(tmp_path: Path, whole: Path) -> None:
    make(tmp_path / "x", only=4)
    made = dataset(tmp_path / "x")
    made.header = dataclasses.replace(made.header, revision="")
    with made.claim():
        storage.write_json(made.work / "_beside" / "x.json", {"seed": 0})
        assert made.finish(4, {"views": 3})
    assert contents(tmp_path / "x") == contents(whole)


@pytest.mark.parametrize(
    ("ids", "fewest", "regular"),
    [
        ([4, 4, 5, 5, 6, 6], 2, True),
        ([4, 4, 6, 6, 7, 7], 2, False),  # a gap
        ([4, 4, 5, 6, 6], 1, False),  # one with fewer rows
        ([9], 1, True),
        ([], 0, True),
    ],
)
def test_the_manifest_tells_the_captions_of_a_part(tmp_path, ids, fewest, regular) -> None:
    texts = {name: ["x"] * len(ids) for name in artifacts.COLUMNS["rejects"]}
    numbers = dict.fromkeys(("caption_id", "attempt", "seed"), pa.array(ids, pa.int64()))
    beside = dataset(tmp_path / "x")
    with beside.claim():
        beside.write(0, pa.table(texts | numbers), rows_per_group=2)
        assert beside.finish(1)
    (part,) = manifest.facts_of(open_dataset(tmp_path / "x", "rejects").parts)
    assert (part.fewest, not part.layout) == (fewest, regular)
    if not regular:
        (data,) = open_dataset(tmp_path / "x", "rejects").parts["layout"].to_pylist()
        known, rows = part_layout.decode(part.first, data)
        assert np.repeat(known, rows).tolist() == ids


def test_a_damaged_layout_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no layout"):
        part_layout.decode(0, b"junk")


def test_a_command_may_say_of_the_whole_what_the_parts_say(tmp_path: Path) -> None:
    some = dataset(tmp_path / "x")
    with some.claim():
        for index in range(3):
            some.write(index, table_of(index), rows_per_group=2, facts={"mark": index})
        assert not some.finish(3, lambda parts: None if parts[2].facts["mark"] == 2 else {})
        assert dataset(tmp_path / "x").state() == "unfinished"
        assert some.finish(3, lambda parts: {"marks": sum(p.facts["mark"] for p in parts)})
    assert open_dataset(tmp_path / "x", "rejects").facts == {"marks": 3}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_nothing_comes_of_is_discarded_and_the_rest_stays(tmp_path, whole, overwrite) -> None:
    folder = whole if overwrite else tmp_path / "x"
    folder.mkdir(exist_ok=True)
    (folder / "notes.txt").write_text("precious")
    before = contents(folder)
    some = dataset(folder, seed=1, sidecars=("_beside",))
    with some.claim(overwrite=overwrite):
        some.write(0, table_of(0, 1), rows_per_group=2)
        storage.write_json(some.work / "_beside" / "y.json", {})
        some.discard()
    assert contents(folder) == before


def test_a_part_killed_while_it_is_replaced_is_made_again(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "x")
    write_json = storage.write_json

    def write_and_die(path, value):
        write_json(path, value)
        if path.name == "part-00001.json":
            raise KeyboardInterrupt

    some = dataset(tmp_path / "x")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), some.claim():
        patch.setattr(storage, "write_json", write_and_die)
        some.write(1, table_of(1, seed=7), rows_per_group=2)  # of another size than before
    make(tmp_path / "x")
    assert contents(tmp_path / "x") == contents(whole)
