"""Reports: what the same command finds again, and what it refuses."""

import json

import pytest
import torch

from synclr_cli.config import LinearProbeConfig
from synclr_cli.data import labelled
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import backbone as backbones, reports, runtime
from synclr_cli.learning.run_folder import RunFolder


@pytest.fixture(scope="module")
def judged():
    """Return a header and a report of a small random ViT on the digits."""
    config = LinearProbeConfig(seed=3)
    data = labelled.open_data("digits:", validation_share=0.2, seed=3)
    opened = backbones.open_backbone("random:vit_tiny_patch16_224", image_size=32)
    made = reports.header(config, opened, data)
    report = reports.build(
        "linear-probe",
        made,
        opened,
        data,
        metric="top1",
        scores={"top1": 0.5, "mean_per_class": 0.4567891},
        interval=(0.4, 0.6),
        details={"penalty": 1.0},
    )
    return made, report


def test_a_report_says_what_was_measured_on_what(judged):
    _, report = judged
    assert report["value"] == report["top1"] == 50
    assert report["mean_per_class"] == 45.6789
    assert report["interval"] == [40, 60]
    assert (report["unit"], report["split"], report["n"], report["seed"]) == ("%", "test", 359, 3)
    assert report["backbone"]["digest"].startswith("sha256:")
    assert report["data"]["digest"].startswith("sha256:")
    assert "held out" in report["data"]["splits"]["test"]
    assert report["penalty"] == 1.0


def folder(header, out, **options):
    alone = runtime.Runtime(torch.device("cpu"), None)
    return RunFolder(out, "linear-probe", header, alone, **options)


def test_the_same_command_finds_its_report(judged, tmp_path):
    header, report = judged
    with folder(header, tmp_path) as run:
        assert not run.finished()
        run.claim()
        assert reports.finish(run, report) == report
    assert folder(header, tmp_path).finished()
    assert not folder(header, tmp_path, overwrite=True).finished()
    assert reports.read(tmp_path / "report.json") == report


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": {"penalties": 7}}, "linear-probe.penalties"),
        ({"parents": ({"name": "other", "digest": "sha256:1"},)}, "other"),
    ],
)
@pytest.mark.parametrize("older", [False, True])
def test_a_report_of_another_command_is_refused(judged, tmp_path, change, named, older):
    header, report = judged
    with folder(header, tmp_path) as run:
        run.claim()
        reports.finish(run, report)
    if older:  # reports were alone in their folders once
        (tmp_path / "run.json").unlink()
    other = type(header)(**{**vars(header), **change})
    with pytest.raises(UsageError, match=named):
        folder(other, tmp_path).finished()


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"schema": "captions"})])
def test_a_file_that_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(DataError, match="Delete it: the same command makes it again"):
        reports.read(path)
