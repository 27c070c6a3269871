"""`captions.run`: the artifact, its provenance, and going on after a stop."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killing import kill_until_done

from synclr_cli import presets
from synclr_cli.captions import concepts, quality
from synclr_cli.captions.run import REJECTED, run
from synclr_cli.config import CaptionEngineConfig, CaptionsConfig
from synclr_cli.data import describe, locks, manifest, storage
from synclr_cli.errors import DataError, UsageError

TEMPLATE = CaptionEngineConfig(name="template:")


def config(**changes):
    return CaptionsConfig(
        **{"concepts": "cifar100", "count": 500, "captions_per_part": 128, "engine": TEMPLATE}
        | changes
    )


def rows(path):
    return pq.read_table(path).to_pylist()


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_the_artifact_has_every_column_and_says_where_it_came_from(tmp_path):
    listed = tmp_path / "birds.txt"
    listed.write_text("barn owl\nheron\n")
    out = run(config(concepts=str(listed), count=40), tmp_path / "captions")
    opened = manifest.open_dataset(out, "captions")
    header = opened.header
    assert opened.rows == 40
    assert header.engine == "template:" and header.revision.startswith("synclr ")
    assert header.parents[0]["name"] == "birds.txt"
    assert header.parents[0]["digest"] == storage.digest(listed)
    assert header.config["share_c"] == 0.44
    for i, row in enumerate(rows(out)):
        assert row["caption_id"] == i
        assert row["concept"] in ("barn owl", "heron") and row["source"] == "birds"
        assert quality.reason(row["caption"], row["concept"]) == ""
        assert row["engine"] == "template:" and row["weight"] == 1
        assert len(set(row["examples"])) == 3
        assert (row["companion"] == "") == (row["template"] == "c")
        assert not row["companion"] or row["companion"] in row["caption"]


def test_no_torch_is_imported_for_the_template_engine(tmp_path):
    code = (
        "import sys, pathlib; from synclr_cli.captions.run import run;"
        "from synclr_cli.config import *;"
        "run(CaptionsConfig(concepts='in12k', count=50, engine=CaptionEngineConfig("
        f"name='template:')), pathlib.Path({str(tmp_path / 'c')!r}));"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_datasets_reads_the_artifact(tmp_path):
    datasets = pytest.importorskip("datasets")
    out = run(config(count=20), tmp_path / "captions")
    read = datasets.load_dataset(
        "parquet",
        data_files=str(out / "part-*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert read[3]["caption"] == rows(out)[3]["caption"]


def test_the_size_of_batches_changes_no_row(tmp_path):
    one = run(config(), tmp_path / "a")
    engine = dataclasses.replace(TEMPLATE, batch_size=3)
    assert rows(one) == rows(run(config(engine=engine), tmp_path / "b"))


def test_the_size_of_parts_changes_only_which_rows_count_as_neighbours(tmp_path):
    free = {"quality_gate": False}
    one = run(config(**free), tmp_path / "a")
    assert rows(one) == rows(run(config(captions_per_part=77, **free), tmp_path / "b"))


def test_a_smaller_count_makes_the_first_rows_of_a_larger_one(tmp_path):
    few, many = (
        run(config(count=90), tmp_path / "few"),
        run(config(), tmp_path / "many"),
    )
    assert rows(few) == rows(many)[:90]


@pytest.mark.parametrize("counts", [(90, 128, 300, 500), (500,)])
@pytest.mark.parametrize("jobs", [1, 2, 3, 7])  # 500 captions make 4 parts
def test_however_often_and_by_how_many_it_is_made_the_folder_is_one_runs(tmp_path, jobs, counts):
    whole = run(config(max_similarity=0.4), tmp_path / "whole")
    out = tmp_path / "shared"
    for count in counts:
        for i in range(jobs, 0, -1):
            run(config(max_similarity=0.4, count=count, shard=f"{i}/{jobs}"), out)
    assert contents(out) == contents(whole)
    assert manifest.open_dataset(out / REJECTED, "rejects").rows > 0
    run(config(max_similarity=0.4), out)  # as one job: it returns at once
    grown = run(config(max_similarity=0.4, count=700), out)
    assert contents(grown) == contents(run(config(max_similarity=0.4, count=700), tmp_path / "x"))


def test_until_the_last_job_is_done_the_folder_is_not_finished(tmp_path, capsys):
    out = run(config(shard="2/2"), tmp_path / "c")
    assert "not whole yet" in capsys.readouterr().err
    with pytest.raises(DataError, match="holds 2 parts but is not finished"):
        manifest.open_dataset(out, "captions")


def test_a_finished_folder_is_returned_at_once(tmp_path):
    out = run(config(), tmp_path / "c")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    run(config(), out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_a_smaller_count_than_the_file_holds_is_refused(tmp_path):
    out = run(config(), tmp_path / "c")
    with pytest.raises(UsageError, match="got -n 100, expected at least 500"):
        run(config(count=100), out)


def test_other_settings_are_refused_and_overwrite_makes_it_anew(tmp_path):
    out = run(config(), tmp_path / "c")
    with pytest.raises(UsageError, match=r"captions\.seed, captions\.share_c"):
        run(config(seed=1, share_c=0.45, share_c_bg=0.44), out)
    run(config(seed=1), out, overwrite=True)
    assert manifest.open_dataset(out, "captions").header.seed == 1
    assert contents(out) == contents(run(config(seed=1), tmp_path / "fresh"))


@pytest.mark.parametrize("name", ["captions.parquet", "birds.txt"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_is_no_place_for_captions(tmp_path, monkeypatch, name, overwrite):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds.txt").write_text("barn owl\n")
    with pytest.raises(UsageError, match="got a file, expected a folder, which captions are"):
        run(config(concepts="birds.txt"), Path(name), overwrite=overwrite)
    assert contents(tmp_path) == {"birds.txt": b"barn owl\n"}


def test_what_else_is_in_the_folder_is_left_alone(tmp_path):
    photo = tmp_path / "mine.jpg"
    photo.write_bytes(b"mine")
    for seed in (0, 1):
        run(config(seed=seed), tmp_path, overwrite=True)
        assert photo.read_bytes() == b"mine"


def test_another_version_of_the_concept_file_is_refused(tmp_path):
    listed = tmp_path / "birds.txt"
    listed.write_text("barn owl\nheron\n")
    out = run(config(concepts=str(listed)), tmp_path / "c")
    listed.write_text("barn owl\nheron\nlinnet\n")
    with pytest.raises(UsageError, match=r"the input birds\.txt"):
        run(config(concepts=str(listed)), out)


def test_parts_of_other_settings_are_refused(tmp_path):
    run(config(shard="1/2"), tmp_path / "c")
    with pytest.raises(UsageError, match=r"captions\.seed"):
        run(config(seed=1), tmp_path / "c")


def test_a_part_that_was_lost_is_made_again(tmp_path):
    out = run(config(max_similarity=0.4), tmp_path / "c")
    whole = contents(out)
    for lost in ("part-00001.parquet", f"{REJECTED}/part-00002.parquet"):
        (out / lost).unlink()
        run(config(max_similarity=0.4), out)
        assert contents(out) == whole


def test_bad_input_leaves_nothing_behind(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(DataError):
        run(config(concepts=str(empty)), tmp_path / "c")
    with pytest.raises(UsageError, match="unknown caption engine"):
        run(config(engine=CaptionEngineConfig(name="templates:")), tmp_path / "c")
    assert contents(tmp_path) == {"empty.txt": b"\n"}


@pytest.mark.parametrize("shard", ["0/0", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(UsageError, match=r"captions\.shard"):
        config(shard=shard)


def test_shards_counted_from_0_are_those_counted_from_1():
    from_zero = {config(shard=f"{i}/4").shard for i in range(4)}
    assert from_zero == {config(shard=f"{i}/4").shard for i in range(1, 5)}


def test_what_the_gate_refused_is_kept_with_its_reason(tmp_path):
    (tmp_path / "l.txt").write_text("owl\n")  # so few sentences that some come twice
    settings = config(
        concepts=str(tmp_path / "l.txt"), count=3000, captions_per_part=1000, share_c=1,
        share_c_bg=0, share_c_rel=0,
    )  # fmt: skip
    out = run(settings, tmp_path / "c")
    opened = manifest.open_dataset(out / REJECTED, "rejects")
    refused = rows(opened.folder)
    assert opened.header.config == manifest.open_dataset(out, "captions").header.config
    assert {r["reason"] for r in refused} == {"exact duplicate"}
    made = {r["caption_id"]: r for r in rows(out)}
    for r in refused:
        again = made[r["caption_id"]]
        assert again["seed"] != r["seed"] and again["concept"] == r["concept"]
    assert len(made) == 3000


def test_without_the_gate_only_empty_captions_are_drawn_again(tmp_path):
    (tmp_path / "l.txt").write_text("owl\n")
    settings = config(concepts=str(tmp_path / "l.txt"), count=2000, quality_gate=False)
    out = run(settings, tmp_path / "c")
    assert manifest.open_dataset(out / REJECTED, "rejects").rows == 0


def _write(out, shard, count, overwrite):
    settings = config(count=count, captions_per_part=100, max_similarity=0.4, shard=shard)
    # Who overwrites sees that it is done, and does not do so again.
    run(settings, out, overwrite=overwrite and not (out / "part-00011.parquet").is_file())


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [("straight", 1.0), ("shards", 0.6), ("grown", 1.0), ("overwrite", 1.0)],
)
def test_however_often_it_is_killed_the_folder_is_the_straight_runs(tmp_path, kind, seconds):
    whole, out, kills = tmp_path / "whole", tmp_path / "killed", 0
    _write(whole, "1/1", 1200, False)
    if kind == "overwrite":
        run(config(seed=1), out)
    if kind == "grown":
        _write(out, "1/1", 350, False)
    for number, shard in enumerate(("1/2", "2/2") if kind == "shards" else ("1/1",)):
        job = functools.partial(_write, out, shard, 1200, kind == "overwrite")
        kills += kill_until_done(job, seconds, seed=number)
    assert kills > 0
    assert contents(out) == contents(whole)


def test_a_row_the_engine_fails_at_is_written_by_rule_and_says_so(tmp_path, monkeypatch):
    from synclr_cli import engines

    class Silent(engines.CaptionEngine):
        revision = "none"

        def __init__(self, target, config):
            self.calls = 0

        def generate(self, prompts, seeds):
            return [
                "" if p.concept == "owl" else f"A {p.concept} at post {s}."
                for p, s in zip(prompts, seeds, strict=True)
            ]

    real = engines.load
    monkeypatch.setattr(
        engines, "load",
        lambda kind, c: Silent("", c) if c.name == "smollm2:" else real(kind, c),
    )  # fmt: skip
    (tmp_path / "l.txt").write_text("owl\nfox\n")
    settings = config(
        concepts=str(tmp_path / "l.txt"), count=60, engine=CaptionEngineConfig(name="smollm2:")
    )
    made = rows(run(settings, tmp_path / "c"))
    assert len(made) == 60
    for row in made:
        assert row["engine"] == ("template:" if row["concept"] == "owl" else "smollm2:")
        assert row["concept"] in row["caption"].lower()


def test_concepts_are_drawn_evenly(tmp_path):
    made = rows(run(config(concepts="cifar10", count=5000), tmp_path / "c"))
    _, hits = np.unique([r["concept"] for r in made], return_counts=True)
    assert len(hits) == 10 and abs(hits - 500).max() < 4 * np.sqrt(5000 * 0.09)


def test_only_one_process_makes_a_folder(tmp_path):
    out = tmp_path / "captions"
    arguments = ["captions", "-c", "cifar10", "--engine", "template:", "-n", "9", "-o", str(out)]
    command = [sys.executable, "-m", "synclr_cli", *arguments]
    with locks.locked(out / ".lock-1-of-1"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "already in use by another process" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


# ----------------------------------------------------------------------------------- elsewhere


def test_captions_and_concepts_may_lie_at_a_uri(tmp_path):
    listed = storage.place("memory://captions-test/birds.csv")
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("concept,weight\nbarn owl,2\nheron,1\n")
    (tmp_path / "birds.csv").write_text("concept,weight\nbarn owl,2\nheron,1\n")
    there = storage.place("memory://captions-test/out")
    for shard in ("1/2", "2/2"):
        run(config(concepts=str(listed), count=200, shard=shard), there)
    here = run(config(concepts=str(tmp_path / "birds.csv"), count=250), tmp_path / "c")
    run(config(concepts=str(listed), count=250), there)  # grows there
    opened = manifest.open_dataset(there, "captions")
    made = pa.concat_tables([storage.table(path) for path in opened.paths()])
    assert made["caption"].to_pylist() == pq.read_table(here)["caption"].to_pylist()
    assert sorted(p.name for p in there.iterdir()) == sorted(p.name for p in here.iterdir())
    with pytest.raises(UsageError, match=r"captions\.seed"):
        run(config(concepts=str(listed), count=250, seed=1), there)


def test_a_mix_may_name_a_uri_with_a_weight():
    listed = storage.place("memory://mix-test/birds.txt")
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("barn owl\nheron\n")
    pool = concepts.read(f"{listed}:3,cifar10:1")
    assert pool.shares()[:2].sum() == pytest.approx(0.75)
    assert concepts.read(str(listed)).names == ["barn owl", "heron"]


def test_the_presets_of_the_paper_take_shards():
    assert presets.resolve("captions", preset="vitb", flags={}, sets=["captions.shard=3/64"])


# ------------------------------------------------------------------------------------ inspected


def test_a_folder_is_described_and_verified_to_the_byte(tmp_path):
    out = run(config(max_similarity=0.4), tmp_path / "c")
    description = describe.describe(out)
    assert (description.kind, description.facts["rows"], description.facts["parts"]) == (
        "captions", 500, 4,
    )  # fmt: skip
    assert description.facts["first"] == [r["caption"] for r in rows(out)[:3]]
    describe.verify(description)
    assert description.facts["verified"] is True
    for name in ("part-00002.parquet", f"{REJECTED}/part-00001.parquet"):
        part = out / name
        whole = part.read_bytes()
        part.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
        with pytest.raises(DataError, match=r"is damaged \(its bytes are not those"):
            describe.verify(describe.describe(out))
        part.write_bytes(whole)
    with pytest.raises(UsageError, match="expected a folder of captions or images"):
        describe.verify(describe.describe(out / "part-00000.parquet"))


def test_an_unfinished_folder_is_described(tmp_path):
    out = run(config(shard="2/2"), tmp_path / "c")
    description = describe.describe(out)
    assert description.facts == {"finished": False, "parts": 2}
    assert description.header.config["captions_per_part"] == 128
    with pytest.raises(DataError, match="not finished"):
        describe.verify(description)
