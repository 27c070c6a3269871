"""`captions.run`: the artifact, its provenance, and going on after a stop."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from synclr_cli.captions import quality
from synclr_cli.captions.run import rejects_path, run
from synclr_cli.config import CaptionEngineConfig, CaptionsConfig
from synclr_cli.data import artifacts, locks, storage
from synclr_cli.errors import DataError, UsageError

TEMPLATE = CaptionEngineConfig(name="template:")


def config(**changes):
    return CaptionsConfig(
        **{"concepts": "cifar100", "count": 500, "captions_per_part": 128, "engine": TEMPLATE}
        | changes
    )


def rows(path):
    return pq.read_table(path).to_pylist()


def test_the_artifact_has_every_column_and_says_where_it_came_from(tmp_path):
    listed = tmp_path / "birds.txt"
    listed.write_text("barn owl\nheron\n")
    out = run(config(concepts=str(listed), count=40), tmp_path / "captions.parquet")
    file, header = artifacts.open_parquet(out, "captions")
    assert file.metadata.num_rows == 40
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
        "import sys, pathlib; from synclr_cli.captions.run import rejects_path, run;"
        "from synclr_cli.config import *;"
        "run(CaptionsConfig(concepts='in12k', count=50, engine=CaptionEngineConfig("
        f"name='template:')), pathlib.Path({str(tmp_path / 'c.parquet')!r}));"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_datasets_reads_the_artifact(tmp_path):
    datasets = pytest.importorskip("datasets")
    out = run(config(count=20), tmp_path / "captions.parquet")
    read = datasets.load_dataset(
        "parquet", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert read[3]["caption"] == rows(out)[3]["caption"]


def test_the_size_of_batches_changes_no_row(tmp_path):
    one = run(config(), tmp_path / "a.parquet")
    engine = dataclasses.replace(TEMPLATE, batch_size=3)
    assert rows(one) == rows(run(config(engine=engine), tmp_path / "b.parquet"))


def test_the_size_of_parts_changes_only_which_rows_count_as_neighbours(tmp_path):
    free = {"quality_gate": False}
    one = run(config(**free), tmp_path / "a.parquet")
    assert rows(one) == rows(run(config(captions_per_part=77, **free), tmp_path / "b.parquet"))


def test_a_smaller_count_makes_the_first_rows_of_a_larger_one(tmp_path):
    few, many = (
        run(config(count=90), tmp_path / "few.parquet"),
        run(config(), tmp_path / "many.parquet"),
    )
    assert rows(few) == rows(many)[:90]


def test_a_larger_count_goes_on_with_a_finished_file(tmp_path):
    whole = run(config(), tmp_path / "whole.parquet")
    grown = tmp_path / "grown.parquet"
    for count in (90, 128, 300, 500):
        run(config(count=count), grown)
    assert grown.read_bytes() == whole.read_bytes()
    assert rejects_path(grown).read_bytes() == rejects_path(whole).read_bytes()
    assert not grown.with_name("grown.parquet.parts").exists()


def test_a_finished_file_is_returned_at_once(tmp_path):
    out = run(config(), tmp_path / "c.parquet")
    before = out.stat().st_mtime_ns
    run(config(), out)
    assert out.stat().st_mtime_ns == before


def test_a_smaller_count_than_the_file_holds_is_refused(tmp_path):
    out = run(config(), tmp_path / "c.parquet")
    with pytest.raises(UsageError, match="got -n 500, expected at most 100"):
        run(config(count=100), out)


def test_other_settings_are_refused_and_overwrite_makes_it_anew(tmp_path):
    out = run(config(), tmp_path / "c.parquet")
    with pytest.raises(UsageError, match=r"captions\.seed, captions\.share_c"):
        run(config(seed=1, share_c=0.45, share_c_bg=0.44), out)
    run(config(seed=1), out, overwrite=True)
    assert artifacts.open_parquet(out, "captions")[1].seed == 1


@pytest.mark.parametrize("name", ["photos", ".", "birds.txt"])
def test_what_is_no_file_of_captions_is_not_overwritten(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    photo = tmp_path / "photos" / "mine.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"mine")
    (tmp_path / "birds.txt").write_text("barn owl\n")
    for overwrite in (True, False):
        with pytest.raises((UsageError, DataError)):
            run(config(concepts="birds.txt"), Path(name), overwrite=overwrite)
    assert photo.read_bytes() == b"mine" and (tmp_path / "birds.txt").read_text() == "barn owl\n"


def test_another_version_of_the_concept_file_is_refused(tmp_path):
    listed = tmp_path / "birds.txt"
    listed.write_text("barn owl\nheron\n")
    out = run(config(concepts=str(listed)), tmp_path / "c.parquet")
    listed.write_text("barn owl\nheron\nlinnet\n")
    with pytest.raises(UsageError, match=r"the input birds\.txt"):
        run(config(concepts=str(listed)), out)


def test_parts_of_other_settings_are_refused(tmp_path):
    out = tmp_path / "c.parquet"
    make_some_parts(out, config(), (0, 2))
    with pytest.raises(UsageError, match=r"captions\.seed"):
        run(config(seed=1), out)


def test_an_interrupted_run_goes_on_and_ends_like_an_uninterrupted_one(tmp_path):
    whole = run(config(), tmp_path / "whole.parquet")
    out = tmp_path / "c.parquet"
    make_some_parts(out, config(), (0, 2))
    run(config(), out)
    assert out.read_bytes() == whole.read_bytes()


def test_a_part_cut_short_by_a_smaller_count_is_made_again(tmp_path):
    whole = run(config(), tmp_path / "whole.parquet")
    out = tmp_path / "c.parquet"
    make_some_parts(out, config(count=200), (0, 1))  # part 1 has 72 of its 128 rows
    run(config(), out)
    assert out.read_bytes() == whole.read_bytes()


def make_some_parts(out, settings, numbers):
    """Leave parts behind as a killed run does."""
    source = run(settings, out.with_name("source.parquet"))
    _, header = artifacts.open_parquet(source, "captions")
    parts = artifacts.Parts(out.with_name(out.name + ".parts"), "captions", header)
    table = pq.read_table(source).replace_schema_metadata(None)
    refused = pq.read_table(rejects_path(source)).replace_schema_metadata(None)
    reject_parts = artifacts.Parts(
        parts.folder / "rejects", "rejects", dataclasses.replace(header, schema="rejects")
    )
    size = settings.captions_per_part
    for i in numbers:
        here = pc.equal(pc.divide(refused["caption_id"], size), i)
        reject_parts.write(i, refused.filter(here), rows_per_group=1000)
        parts.write(i, table.slice(i * size, size), rows_per_group=1000)


def test_bad_input_leaves_nothing_behind(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(DataError):
        run(config(concepts=str(empty)), tmp_path / "c.parquet")
    with pytest.raises(UsageError, match="unknown caption engine"):
        run(config(engine=CaptionEngineConfig(name="templates:")), tmp_path / "c.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.txt"]


def test_any_number_of_shards_makes_the_same_rows(tmp_path):
    whole = rows(run(config(captions_per_part=32), tmp_path / "whole.parquet"))
    for of in (2, 3, 7, 20):  # 500 captions make 16 parts: some of 20 shards have none
        made = []
        for i in range(1, of + 1):
            out = tmp_path / f"{i}-of-{of}.parquet"
            run(config(captions_per_part=32, shard=f"{i}/{of}", count=140), out)
            run(config(captions_per_part=32, shard=f"{i}/{of}"), out)  # a shard can grow, too
            made += rows(out)
        assert sorted(made, key=lambda r: r["caption_id"]) == whole


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(UsageError, match=r"captions\.shard"):
        config(shard=shard)


def test_what_the_gate_refused_is_kept_with_its_reason(tmp_path):
    (tmp_path / "l.txt").write_text("owl\n")  # so few sentences that some come twice
    settings = config(
        concepts=str(tmp_path / "l.txt"), count=3000, captions_per_part=1000, share_c=1,
        share_c_bg=0, share_c_rel=0,
    )  # fmt: skip
    out = run(settings, tmp_path / "c.parquet")
    refused, header = artifacts.open_parquet(rejects_path(out), "rejects")
    refused = refused.read().to_pylist()
    assert header.config == artifacts.open_parquet(out, "captions")[1].config
    assert {r["reason"] for r in refused} == {"exact duplicate"}
    made = {r["caption_id"]: r for r in rows(out)}
    for r in refused:
        again = made[r["caption_id"]]
        assert again["seed"] != r["seed"] and again["concept"] == r["concept"]
    assert len(made) == 3000


def test_without_the_gate_only_empty_captions_are_drawn_again(tmp_path):
    (tmp_path / "l.txt").write_text("owl\n")
    settings = config(concepts=str(tmp_path / "l.txt"), count=2000, quality_gate=False)
    out = run(settings, tmp_path / "c.parquet")
    assert pq.read_metadata(rejects_path(out)).num_rows == 0


@pytest.mark.slow
def test_twenty_kills_later_the_file_is_the_uninterrupted_one(tmp_path):
    settings = "concepts='cifar100', count=120_000, captions_per_part=2000, max_similarity=0.8"
    code = (
        "import sys, pathlib; from synclr_cli.captions.run import run;"
        "from synclr_cli.config import *;"
        f"run(CaptionsConfig({settings}, engine=CaptionEngineConfig(name='template:')),"
        " pathlib.Path(sys.argv[1]))"
    )
    whole = tmp_path / "whole" / "c.parquet"
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code, str(whole)], check=True)
    lasts = time.monotonic() - start
    random = np.random.default_rng(0)
    killed = finished = 0
    out = tmp_path / "0" / "c.parquet"
    while killed < 20:  # a run that was not killed in time is compared, and another one begun
        process = subprocess.Popen([sys.executable, "-c", code, str(out)])
        try:
            process.wait(random.uniform(0, 0.7) * lasts)
        except subprocess.TimeoutExpired:
            process.kill()
        if process.wait() == -9:
            killed += 1
            assert not out.exists() or out.read_bytes() == whole.read_bytes()
        else:
            assert process.returncode == 0
            same_files(whole.parent, out.parent)
            finished += 1
            out = tmp_path / str(finished) / "c.parquet"
    subprocess.run([sys.executable, "-c", code, str(out)], check=True)
    same_files(whole.parent, out.parent)


def same_files(one, other):
    names = {p.name for p in one.iterdir()}
    assert {p.name for p in other.iterdir()} == names == {"c.parquet", "c.rejects.parquet"}
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes()


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
    made = rows(run(settings, tmp_path / "c.parquet"))
    assert len(made) == 60
    for row in made:
        assert row["engine"] == ("template:" if row["concept"] == "owl" else "smollm2:")
        assert row["concept"] in row["caption"].lower()


def test_concepts_are_drawn_evenly(tmp_path):
    made = rows(run(config(concepts="cifar10", count=5000), tmp_path / "c.parquet"))
    _, hits = np.unique([r["concept"] for r in made], return_counts=True)
    assert len(hits) == 10 and abs(hits - 500).max() < 4 * np.sqrt(5000 * 0.09)


def test_a_smaller_count_leaves_the_parts_of_a_larger_alone(tmp_path):
    out = run(config(count=128), tmp_path / "captions.parquet")
    whole = run(config(count=500), tmp_path / "whole.parquet")
    make_some_parts(out, config(count=500), (1, 2))
    folder = out.with_name("captions.parquet.parts")
    assert run(config(count=128), out) == out and len(list(folder.glob("part-*"))) == 2
    for path in (*folder.glob("part-*"), *tmp_path.glob("source.*")):
        path.unlink()
    make_some_parts(out, config(count=128), (0,))  # as a kill at the very end leaves it
    run(config(count=128), out)
    assert not folder.exists()
    assert run(config(count=500), out).read_bytes() == whole.read_bytes()


def test_only_one_process_makes_a_file(tmp_path):
    out = tmp_path / "captions.parquet"
    arguments = ["captions", "-c", "cifar10", "--engine", "template:", "-n", "9", "-o", str(out)]
    command = [sys.executable, "-m", "synclr_cli", *arguments]
    with locks.locked(tmp_path / ".captions.parquet.lock"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "already in use by another process" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
