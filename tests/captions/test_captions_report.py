"""The coverage report agrees with a plain count of the file."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synclr_cli.captions import report as reports
from synclr_cli.captions.run import run
from synclr_cli.config import CaptionEngineConfig, CaptionsConfig
from synclr_cli.data import artifacts
from synclr_cli.data.shards import ShardedDataset
from synclr_cli.errors import DataError

COUNT = 2000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coverage")
    listed = folder / "own.csv"
    listed.write_text(
        "concept,weight,kind\nowl,2,object\nfox,1,object\nauk,0,object\nhall,1,place\n"
    )
    config = CaptionsConfig(
        concepts=f"{listed}:3,dtd:1", count=COUNT, engine=CaptionEngineConfig(name="template:")
    )
    return run(config, folder / "captions")


def test_shares_are_counted_and_intended_ones_recomputed(made):
    report = reports.report(made)
    rows = pq.read_table(made).to_pylist()
    own = sum(r["source"] == "own" for r in rows) / COUNT
    share = report["sources"]["own"]
    assert share["realised"] == pytest.approx(own)
    assert share["intended"] == pytest.approx(0.75)
    assert share["low"] < own < share["high"]
    assert report["templates"]["c_rel"]["intended"] == pytest.approx(0.75 * 0.75 * 0.11)
    assert sum(t["intended"] for t in report["templates"].values()) == pytest.approx(1)
    assert report["captions"] == COUNT


def test_concepts_never_drawn_are_named(made):
    drawn = reports.report(made)["concepts"]
    assert drawn["of"] == 4 + 47
    assert "auk" in drawn["never_names"] and drawn["never"] == 1
    assert drawn["never_expected"] == pytest.approx(1, abs=0.01)


def test_variety_lengths_and_duplicates_are_plain_counts(made):
    report = reports.report(made)
    captions = [r["caption"].casefold() for r in pq.read_table(made).to_pylist()]
    words = [c.split() for c in captions]
    pairs = [p for w in words for p in itertools.pairwise(w)]
    assert report["distinct_2"] == pytest.approx(len(set(pairs)) / len(pairs))
    assert report["words"]["mean"] == pytest.approx(sum(map(len, words)) / COUNT)
    assert sum(report["words"]["histogram"].values()) == COUNT
    assert report["exact_duplicates"] == COUNT - len(set(captions))
    assert report["refusals"]["accepted_share"] > 0.5


def test_without_its_concept_file_the_intended_shares_are_absent(made):
    listed = made.parent / "own.csv"
    text = listed.read_text()
    try:
        listed.unlink()
        assert reports.report(made)["sources"]["own"]["intended"] is None
        listed.write_text(text + "more,1,object\n")
        assert reports.report(made)["concepts"]["of"] is None
    finally:
        listed.write_text(text)


def test_the_report_has_a_table_and_a_image(made, tmp_path):
    from PIL import Image

    report = reports.report(made)
    names = [name for name, _ in reports.table(report)]
    assert {"captions", "source own", "template c_bg", "exact duplicates"} <= set(names)
    with Image.open(reports.plot(report, tmp_path / "coverage.png")) as image:
        assert image.format == "PNG" and image.width > 500


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"), [(50, 100, 0.404, 0.596), (0, 10, 0, 0.278)]
)
def test_the_interval_is_wilsons(hits, of, low, high):
    assert reports.wilson(hits, of) == pytest.approx((low, high), abs=5e-4)


def test_the_interval_holds_the_share():
    for of in range(1, 3000):
        assert reports.wilson(of, of)[1] == 1 and reports.wilson(0, of)[0] == 0


def test_a_row_without_a_caption_is_refused(tmp_path):
    row = {"caption_id": 0, "caption": None, "concept": "owl", "source": "x", "template": "c",
           "companion": "", "engine": "x", "seed": 0, "examples": [], "weight": 1.0}  # fmt: skip
    table = pa.Table.from_pylist([row], schema=artifacts.arrow_schema("captions"))
    header = artifacts.Header("captions", {})
    captions = ShardedDataset(tmp_path / "x", "captions", header)
    with captions.claim():
        captions.write(0, table, rows_per_group=10)
        captions.finish(1)
    with pytest.raises(DataError, match="a row without caption"):
        reports.report(tmp_path / "x")


def test_a_file_that_is_no_captions_file_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(DataError):
        reports.report(tmp_path / "x")
