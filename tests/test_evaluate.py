"""One call of a judge over several backbones and data sets. The judge here only says its input."""

from __future__ import annotations

import pytest

from synclr_cli import evaluate
from synclr_cli.compare import Comparison
from synclr_cli.config import LinearProbeConfig
from synclr_cli.errors import UsageError
from synclr_cli.evaluate import Suite, Task


class Recorder:
    """A judge whose grade is the length of what it judges."""

    def __init__(self):
        self.calls = []

    def __call__(self, config, backbone, data, out, *, overwrite):
        self.calls.append((backbone, data, str(out)))
        value = float(len(backbone))
        return {
            "metric": config.metric, "value": value, "n": 9, "interval": [value, value],
            "data": {"classes": 5},
        }  # fmt: skip


def judged(backbones, names, out=None, suite=None, classes=0):
    judge = Recorder()
    tasks = [Task(name, f"root/{name}", LinearProbeConfig(), classes) for name in names]
    found = evaluate.run(judge, "linear-probe", backbones, tasks, out, suite=suite, overwrite=False)
    return found, judge.calls


def test_one_backbone_on_one_set_is_a_report_in_the_folder_asked_for(tmp_path):
    found, calls = judged(["timm:x"], ["pets"], tmp_path / "here")
    assert found["value"] == 6 and calls == [("timm:x", "root/pets", str(tmp_path / "here"))]


def test_several_backbones_are_a_table_and_each_has_its_folder(tmp_path):
    found, calls = judged(["timm:x", "runs/long"], ["pets", "cars"], tmp_path)
    assert isinstance(found, Comparison)
    assert list(found.rows) == ["timm:x", "runs/long"]
    assert found.columns == ["pets top1", "cars top1"]
    folders = [out for *_, out in calls]
    assert len(set(folders)) == 4 and folders[0] == str(tmp_path / "timm-x-on-pets")


def test_runs_of_one_name_get_their_folders_names_too():
    _, calls = judged(["a/run", "b/run"], ["pets"])
    assert [out for *_, out in calls] == [
        "runs/linear-probe/a-run-on-pets", "runs/linear-probe/b-run-on-pets"
    ]  # fmt: skip


def test_a_backbone_named_twice_is_refused():
    with pytest.raises(UsageError, match="two of one name"):
        judged(["a/run", "a/run"], ["pets"])


def test_a_suite_names_what_is_missing_and_gives_no_average_without_it():
    suite = Suite("fine-grained", 3, ["dtd"])
    found, _ = judged(["timm:x"], ["pets", "cars"], suite=suite)
    assert found.json()["missing"] == ["dtd"] and found.json()["rows"][0]["average"] is None
    assert "dtd" in found.notes[0]


def test_a_whole_suite_has_an_average():
    found, _ = judged(["timm:x"], ["pets", "cars"], suite=Suite("fine-grained", 2))
    assert found.json()["rows"][0]["average"] == 6.0 and found.notes == []


def test_another_number_of_classes_than_the_papers_is_said():
    found, _ = judged(["timm:x"], ["pets"], suite=Suite("fine-grained", 1), classes=37)
    assert found.notes == ["pets has 5 classes, the paper's 37."]
