"""The paper's suites, found in a folder under the names that people use."""

import pytest

from synclr_cli.errors import DataError
from synclr_cli.linear_probe import suites


def test_the_suites_are_the_papers():
    fine = suites.SUITES["fine-grained"]
    assert len(fine) == 9 and len(suites.SUITES["generalisation"]) == 6
    by_class = {name for name, each in fine.items() if each.metric == "mean_per_class"}
    assert by_class == {"aircraft", "pets", "caltech101", "flowers"}
    assert fine["voc2007"].metric == "mean_ap" and fine["cars"].metric == "top1"


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("aircraft", "aircraft"),
        ("FGVC_Aircraft", "aircraft"),
        ("oxford-iiit-pet", "pets"),
        ("Food101.parquet", "food"),
        ("VOC2007", "voc2007"),
    ],
)
def test_a_set_is_found_by_its_usual_names(tmp_path, name, means):
    (tmp_path / name).mkdir()
    found = suites.find("fine-grained", tmp_path)
    assert found.present == {means: tmp_path / name} and len(found.missing) == 8


def test_a_folder_without_any_set_is_refused_and_says_what_is_there(tmp_path):
    (tmp_path / "holidays").mkdir()
    with pytest.raises(DataError, match="got holidays, expected aircraft, cars"):
        suites.find("fine-grained", tmp_path)


def test_the_command_judges_what_is_there_and_names_what_is_not(tmp_path, stripes, synclr):
    (tmp_path / "dtd").symlink_to(stripes)
    sets = [
        word
        for each in ("image_size=32", "penalties=3", "workers=0", "iterations=40")
        for word in ("--set", f"linear-probe.{each}")
    ]
    command = ["linear-probe", "pixels:8", "pixels:4", "--suite", "fine-grained"]
    done = synclr(*command, "--data-root", tmp_path, "-o", tmp_path / "out", *sets)
    assert done.code == 0, done.err
    assert "Missing of the suite fine-grained: aircraft, cars, flowers" in done.err
    assert "dtd has 3 classes, the paper's 47" in done.err
    import json

    found = json.loads(done.out)
    assert [row["backbone"] for row in found["rows"]] == ["pixels:8", "pixels:4"]
    assert found["columns"] == ["dtd top1"] and "voc2007" in found["missing"]
    assert (tmp_path / "out" / "pixels-8-on-dtd" / "report.json").is_file()


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--suite", "fine-grained"],
        ["--data", "x", "--data-root", "."],
        ["--data", "x", "--suite", "fine-grained", "--data-root", "."],
        ["--suite", "fine", "--data-root", "."],
    ],
)
def test_data_and_suite_exclude_each_other(synclr, flags):
    assert synclr("linear-probe", "pixels:8", *flags).code == 2
