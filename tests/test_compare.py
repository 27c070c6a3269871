"""Several reports as one table: what shares a cell, what must not, and how it is shown."""

from __future__ import annotations

import csv
import json

import pytest

from synclr_cli import compare
from synclr_cli.data.artifacts import Header
from synclr_cli.data.storage import write_json
from synclr_cli.errors import DataError

SETTINGS = {"protocol": "lbfgs", "iterations": 100, "workers": 0, "seed": 0}


def report(spec="runs/a", value=50.0, seed=0, data="pets", digest="", **settings):
    """Return a linear probe's report, as far as a table reads it."""
    config = {**SETTINGS, "seed": seed, **settings}
    return {
        "schema": "report",
        "task": "linear-probe",
        "protocol": config["protocol"],
        "metric": "top1",
        "value": value,
        "n": 200,
        "seed": seed,
        "interval": [value - 2, value + 2],
        "backbone": {"spec": spec, "digest": f"sha256:{digest or spec}"},
        "data": {"name": data, "digest": f"sha256:{data}", "classes": 37},
        "config": config,
        "header": json.loads(Header("report", config=config, seed=seed).json()),
    }


def test_reports_that_differ_by_the_seed_alone_share_a_cell():
    reports = [report(value=v, seed=s) for s, v in enumerate((50.0, 54.0))]
    found = compare.compare(reports)
    assert found.grid() == [["backbone", "pets linear-probe top1"], ["runs/a", "52.0 ± 2.8"]]
    grades = found.json()["rows"][0]["grades"]["pets linear-probe top1"]
    assert grades == {"value": 52.0, "n": 200, "seeds": 2, "deviation": 2.8284}


def test_random_weights_are_one_row_though_each_seed_draws_others():
    reports = [report("random:vits", seed=s, digest=str(s)) for s in (0, 1)]
    assert len(compare.compare(reports).rows) == 1


def test_a_retrained_backbone_is_another_row():
    reports = [report(digest="11112222x"), report(digest="33334444x", seed=1)]
    assert list(compare.compare(reports).rows) == ["runs/a (11112222)", "runs/a (33334444)"]


def test_other_settings_or_other_data_of_one_name_are_other_columns_and_say_why():
    changed = report("runs/b", iterations=5)
    other = report("runs/c")
    other["data"]["digest"] = "sha256:99998888x"
    found = compare.compare([report(), changed, other])
    assert found.columns == [
        "pets linear-probe top1 (iterations=100 data pets)",
        "pets linear-probe top1 (iterations=5 data pets)",
        "pets linear-probe top1 (iterations=100 data 99998888)",
    ]


def test_settings_of_running_do_not_part_columns():
    assert len(compare.compare([report(), report("runs/b", workers=8)]).columns) == 1


def test_a_missing_grade_is_a_dash_and_the_highest_is_bold():
    reports = [report(), report("runs/b", 60.0), report("runs/b", 70.0, data="cars")]
    assert compare.compare(reports).markdown().splitlines() == [
        "| backbone | pets linear-probe top1 | cars linear-probe top1 |",
        "| --- | ---: | ---: |",
        "| runs/a | 50.0 [48.0, 52.0] | - |",
        "| runs/b | **60.0 [58.0, 62.0]** | 70.0 [68.0, 72.0] |",
    ]


def test_an_average_is_there_only_if_every_set_is():
    cells = {name: compare.cell([report(value=v)]) for name, v in (("x", 40.0), ("y", 60.0))}
    whole = compare.Comparison(["x", "y"], {"a": cells, "b": {"x": cells["x"]}}, average_of=2)
    assert [line[-1] for line in whole.grid()] == ["average", "50.0", "-"]
    assert [row["average"] for row in whole.json()["rows"]] == [50.0, None]


def test_compare_reads_files_and_folders_and_writes_what_is_asked(tmp_path, synclr):
    write_json(tmp_path / "runs" / "a" / "report.json", report())
    write_json(tmp_path / "runs" / "b" / "report.json", report("runs/b", 61.0))
    asked = "--markdown", tmp_path / "t.md", "--png", tmp_path / "t.png"
    done = synclr(
        "compare", tmp_path / "runs" / "a" / "report.json", tmp_path / "runs" / "b", *asked
    )
    assert done.code == 0
    assert [row["backbone"] for row in json.loads(done.out)["rows"]] == ["runs/a", "runs/b"]
    assert "**61.0" in (tmp_path / "t.md").read_text()
    from PIL import Image

    width, height = Image.open(tmp_path / "t.png").size
    assert width > 300 and height > 100


@pytest.mark.parametrize("made", [False, True])
def test_what_is_no_report_is_named(tmp_path, synclr, made):
    if made:
        write_json(tmp_path / "x.json", {"schema": "captions"})
    done = synclr("compare", tmp_path / "x.json")
    assert done.code == DataError.exit_code and "x.json" in done.error_line


def test_rows_keep_the_order_they_were_given_in(tmp_path, synclr):
    for name in "abc":
        write_json(tmp_path / name / "report.json", report(f"runs/{name}"))
    done = synclr("compare", *(tmp_path / name for name in "cab"))
    rows = [row["backbone"] for row in json.loads(done.out)["rows"]]
    assert rows == ["runs/c", "runs/a", "runs/b"]


def test_the_floor_of_pixels_is_never_the_best():
    reports = [report("pixels:32", 70.0), report("runs/a", 60.0), report("runs/b", 50.0)]
    assert {row for row, _ in compare.compare(reports).best()} == {"runs/a"}


def test_labels_and_margins_over_a_reference():
    reports = [report("runs/a", 50.0), report("random:vits", 42.5), report("pixels:32", 55.0)]
    table = compare.compare(reports).named(["ours", "random", "pixels"], "random:vits")
    assert [line[0] for line in table.grid()] == ["backbone", "ours", "random", "pixels"]
    assert [line[1] for line in table.grid()[1:]] == [
        "50.0 (+7.5) [48.0, 52.0]", "42.5 [40.5, 44.5]", "55.0 (+12.5) [53.0, 57.0]",
    ]  # fmt: skip
    grades = [row["grades"]["pets linear-probe top1"] for row in table.json()["rows"]]
    assert [g.get("margin") for g in grades] == [7.5, None, 12.5]
    assert {row for row, _ in table.best()} == {"ours"}


@pytest.mark.parametrize(
    "asked", [("--labels", "one"), ("--labels", "x,x"), ("--reference", "nobody")]
)
def test_wrong_labels_and_references_are_usage_errors(tmp_path, synclr, asked):
    for name in "ab":
        write_json(tmp_path / name / "report.json", report(f"runs/{name}"))
    done = synclr("compare", tmp_path / "a", tmp_path / "b", *asked)
    assert done.code == 2 and asked[0] in done.error_line


def test_csv_has_a_line_for_each_grade(tmp_path, synclr):
    write_json(tmp_path / "a" / "report.json", report("runs/a,b", 50.0))
    write_json(tmp_path / "b" / "report.json", report("runs/c", 60.0))
    asked = "--csv", tmp_path / "t.csv", "--reference", "runs/a,b"
    assert synclr("compare", tmp_path / "a", tmp_path / "b", *asked).code == 0
    with open(tmp_path / "t.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["backbone"], line["value"], line["margin"]) for line in lines] == [
        ("runs/a,b", "50.0000", ""), ("runs/c", "60.0000", "10.0000"),
    ]  # fmt: skip
    assert (lines[1]["low"], lines[1]["high"], lines[1]["n"]) == ("58.0000", "62.0000", "200")


def test_latex_escapes_names_and_marks_the_best():
    reports = [report("runs/a_1", 50.0), report("runs/b&c", 60.0)]
    lines = compare.compare(reports).latex().splitlines()
    assert lines[0] == r"\begin{tabular}{lr}"
    assert r"runs/a\_1 & 50.0 [48.0, 52.0] \\" in lines
    assert r"runs/b\&c & \textbf{60.0 [58.0, 62.0]} \\" in lines
