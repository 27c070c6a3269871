"""The evaluation: it learns, it repeats itself, and it never looks at the test split early."""

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from synclr_cli.errors import DataError, UsageError
from synclr_cli.linear_probe.run import run

BACKBONE = "random:vit_tiny_patch16_224"


def test_random_features_tell_stripes_apart(small, stripes, tmp_path):
    report = run(small(), BACKBONE, str(stripes), tmp_path)
    assert report["task"] == "linear-probe"
    assert report["top1"] == report["value"] > 33.4 + 25
    assert report["interval"][0] <= report["top1"] <= report["interval"][1]
    assert report["n"] == 24
    assert np.sum(report["confusion"]) == 24
    assert report["top1"] == pytest.approx(100 * np.trace(report["confusion"]) / 24, abs=1e-3)
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_the_same_command_returns_the_stored_report(small, stripes, tmp_path):
    first = run(small(), BACKBONE, str(stripes), tmp_path)
    before = (tmp_path / "report.json").stat().st_mtime_ns
    assert run(small(batch_size=5), BACKBONE, str(stripes), tmp_path) == first
    assert (tmp_path / "report.json").stat().st_mtime_ns == before


def test_without_its_report_the_same_command_reaches_the_same_grade(small, stripes, tmp_path):
    first = run(small(), BACKBONE, str(stripes), tmp_path)
    (tmp_path / "report.json").unlink()  # killed after the features
    (tmp_path / next(tmp_path.glob("features-val*")).name).unlink()
    second = run(small(), BACKBONE, str(stripes), tmp_path)
    for key in ("top1", "penalty", "confusion", "interval", "sweep"):
        assert second[key] == first[key]


def test_another_config_is_refused_unless_made_anew(small, stripes, tmp_path):
    run(small(), BACKBONE, str(stripes), tmp_path)
    with pytest.raises(UsageError, match=r"linear-probe\.penalties"):
        run(small(penalties=3), BACKBONE, str(stripes), tmp_path)
    report = run(small(penalties=3), BACKBONE, str(stripes), tmp_path, overwrite=True)
    assert len(report["sweep"]) == 3


def test_the_test_split_has_no_say_in_the_choice(small, stripes, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(stripes, other)
    for i in range(4):  # half of the test images change classes
        (other / "test/level" / f"{i}.png").rename(other / "test/upright" / f"moved{i}.png")
    one = run(small(), BACKBONE, str(stripes), tmp_path / "one")
    two = run(small(), BACKBONE, str(other), tmp_path / "two")
    assert two["sweep"] == one["sweep"]
    assert two["penalty"] == one["penalty"]
    assert two["top1"] < one["top1"]


def test_of_equally_good_penalties_the_smallest_is_chosen(small, stripes, tmp_path):
    report = run(small(), BACKBONE, str(stripes), tmp_path)
    best = max(row["validation"] for row in report["sweep"])
    assert report["penalty"] == next(
        row["penalty"] for row in report["sweep"] if row["validation"] == best
    )


def test_the_mean_per_class_can_be_the_metric(small, stripes, tmp_path):
    report = run(small(metric="mean_per_class", standardise=True), BACKBONE, str(stripes), tmp_path)
    assert report["metric"] == "mean_per_class"
    assert report["value"] == report["mean_per_class"]


def test_a_broken_image_stops_the_judge_and_leaves_no_report(small, stripes, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(stripes, broken)
    (broken / "test/plain/3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png does not decode"):
        run(small(workers=1), BACKBONE, str(broken), tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_the_command_prints_one_object(synclr, stripes, tmp_path):
    sets = [f"linear-probe.{k}={v}" for k, v in (("image_size", 32), ("penalties", 3))]
    ended = synclr(
        "linear-probe", BACKBONE, "--data", stripes, "-o", tmp_path,
        *(word for each in sets for word in ("--set", each)),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["top1"] > 33


def test_one_class_is_one_line_and_exit_code_three(synclr, stripes, tmp_path):
    shutil.copytree(stripes / "train" / "plain", tmp_path / "data" / "plain")
    ended = synclr("linear-probe", BACKBONE, "--data", tmp_path / "data", "-o", tmp_path / "out")
    assert ended.code == 3
    assert "one class, plain" in ended.error_line
    assert not (tmp_path / "out").exists()


def several_labels(folder, n=40):
    """Write images that are dark or light and reddish or not, with a list of labels each."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        light, red = rng.integers(0, 2, n), rng.integers(0, 2, n)
        cells = []
        for i in range(n):
            colour = 60 + 100 * light[i] + np.array([40, 0, 0]) * red[i]
            pixels = (colour + rng.normal(0, 10, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        labels = [["light"] * a + ["red"] * b for a, b in zip(light, red, strict=True)]
        pq.write_table(pa.table({"image": cells, "labels": labels}), folder / f"{split}.parquet")


def test_several_labels_a_image_are_graded_by_average_precision(small, tmp_path):
    several_labels(tmp_path)
    report = run(small(metric="mean_ap"), "pixels:4", str(tmp_path), tmp_path / "out")
    assert report["metric"] == "mean_ap"
    assert report["mean_ap"] > 90
    assert report["mean_ap"] == pytest.approx(
        np.mean(list(report["average_precision_by_class"].values())), abs=1e-3
    )
    assert set(report["average_precision_by_class"]) == {"light", "red"}


def test_lists_of_labels_need_the_metric_for_them(small, stripes, tmp_path):
    several_labels(tmp_path)
    with pytest.raises(DataError, match="mean_ap"):
        run(small(), "pixels:4", str(tmp_path), tmp_path / "out")
    with pytest.raises(UsageError, match="one class an image"):
        run(small(metric="mean_ap"), "pixels:4", str(stripes), tmp_path / "out")
    with pytest.raises(UsageError, match="lbfgs"):
        small(metric="mean_ap", protocol="knn")
