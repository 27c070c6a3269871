"""`captions.run`: the artifact, its provenance, and going on after a stop."""

import dataclasses
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from synclr_cli import artifacts
from synclr_cli.captions import quality
from synclr_cli.captions.run import run
from synclr_cli.config import CaptionEngineConfig, CaptionsConfig
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
    assert header.parents[0]["digest"] == artifacts.digest(listed)
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


def test_the_size_of_parts_and_batches_changes_no_row(tmp_path):
    one = run(config(), tmp_path / "a.parquet")
    engine = dataclasses.replace(TEMPLATE, batch_size=3)
    other = run(config(captions_per_part=77, engine=engine), tmp_path / "b.parquet")
    assert rows(one) == rows(other)


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
    assert not grown.with_name("grown.parquet.parts").exists()


def test_a_finished_file_is_returned_at_once(tmp_path):
    out = run(config(), tmp_path / "c.parquet")
    before = out.stat().st_mtime_ns
    run(config(), out)
    assert out.stat().st_mtime_ns == before


def test_a_smaller_count_than_the_file_holds_is_refused(tmp_path):
    out = run(config(), tmp_path / "c.parquet")
    with pytest.raises(UsageError, match="got 500, expected at most 100"):
        run(config(count=100), out)


def test_other_settings_are_refused_and_overwrite_makes_it_anew(tmp_path):
    out = run(config(), tmp_path / "c.parquet")
    with pytest.raises(UsageError, match=r"captions\.seed, captions\.share_c"):
        run(config(seed=1, share_c=0.45, share_c_bg=0.44), out)
    run(config(seed=1), out, overwrite=True)
    assert artifacts.open_parquet(out, "captions")[1].seed == 1


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
    size = settings.captions_per_part
    for i in numbers:
        parts.write(i, table.slice(i * size, size), rows_per_group=1000)


def test_bad_input_leaves_nothing_behind(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(DataError):
        run(config(concepts=str(empty)), tmp_path / "c.parquet")
    with pytest.raises(UsageError, match="unknown caption engine"):
        run(config(engine=CaptionEngineConfig(name="templates:")), tmp_path / "c.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.txt"]


def test_a_row_the_engine_fails_at_is_written_by_rule_and_says_so(tmp_path, monkeypatch):
    class Silent:
        revision = "none"

        def __init__(self, target, config):
            self.calls = 0

        def complete(self, prompts, seeds):
            return ["" if p.concept == "owl" else f"A {p.concept} here." for p in prompts]

    from synclr_cli import engines

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
