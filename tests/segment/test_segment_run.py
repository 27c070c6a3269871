"""Evaluations of small images: it learns, stops, goes on, and refuses what does not fit."""

import functools
import json

import killing
import numpy as np
import pytest
import torch
from judged import lines, same, weights
from PIL import Image
from safetensors.torch import load_file

from synclr_cli.errors import DataError, DivergedError, UsageError
from synclr_cli.learning import checkpoint
from synclr_cli.segment import dense, overlays
from synclr_cli.segment.run import run


def test_it_learns_to_find_boxes_and_beats_the_floor(settings, boxes, small_vit, tmp_path):
    config = settings(steps=40, drop_path=0.0, photometric=False, validation_steps=20)
    report = run(config, small_vit, boxes, tmp_path / "out")
    assert report["metric"] == "mean_iou"
    assert report["value"] > report["mean_iou_floor"] + 20
    assert report["interval"][0] < report["value"] < report["interval"][1]
    assert report["n"] == 12
    ious = report["per_class_iou"]
    assert list(ious) == ["0", "1", "2"]  # what is unlabelled is not a class
    assert np.mean(list(ious.values())) == pytest.approx(report["value"], abs=1e-3)
    assert report["pixel_accuracy"] > report["pixel_accuracy_floor"]
    assert report["selected"]["step"] in (20, 40)
    assert not (tmp_path / "out" / "checkpoints").exists()
    with Image.open(tmp_path / "out" / "overlays.png") as sheet:
        rows = 6 * (160 + 4)  # six of the twelve test images, and the legend
        assert rows < sheet.height < rows + 60
        assert sheet.width > 3 * 128


def test_an_overlay_blends_the_colour_of_the_class_and_blackens_what_is_ignored():
    grey = Image.fromarray(np.full((160, 160, 3), 100, np.uint8))
    ids = np.full((160, 160), 2)
    ids[:, 80:] = dense.IGNORED
    shown = overlays.blend(grey, ids, overlays.palette(3))
    assert shown[80, 20].tolist() == [int(40 + 0.6 * c) for c in overlays.palette(3)[2].tolist()]
    assert shown[80, 120].tolist() == [0, 0, 0]
    assert overlays.blend(grey, None, overlays.palette(3))[80, 120].tolist() == [100] * 3


def test_every_class_has_a_colour_of_its_own():
    colours = {tuple(c) for c in overlays.palette(150).tolist()}
    assert len(colours) == 150


def test_the_linear_head_learns_on_a_backbone_that_stays_as_it_is(
    settings, boxes, small_vit, tmp_path
):
    config = settings(head="linear", steps=30, lr=2e-2, photometric=False, layer_decay=1.0)
    report = run(config, small_vit, boxes, tmp_path / "out")
    assert report["value"] > report["mean_iou_floor"]
    trained = weights(tmp_path / "out")
    given = load_file(f"{small_vit}/backbone.safetensors")
    assert all(torch.equal(trained[f"backbone.{name}"], each) for name, each in given.items())


@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_stopping_after_every_step_changes_no_weight(settings, boxes, small_vit, tmp_path, head):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    full = run(settings(head=head), small_vit, boxes, whole)
    stopping = settings(head=head, stop_after_minutes=1e-9)
    for step in range(1, 6):
        found = run(stopping, small_vit, boxes, pieces)
        assert found == {"task": "segment", "finished": False, "step": step, "steps": 6}
    last = run(stopping, small_vit, boxes, pieces)
    assert same(weights(whole), weights(pieces))
    assert last["value"] == full["value"]
    assert lines(whole) == lines(pieces)


def test_workers_change_no_weight(settings, boxes, small_vit, tmp_path):
    for workers in (0, 2):
        run(settings(steps=3, workers=workers), small_vit, boxes, tmp_path / str(workers))
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_the_test_split_has_no_say_in_what_is_trained_and_selected(
    settings, boxes, small_vit, new_split, tmp_path
):
    other = tmp_path / "other"
    new_split(other / "train.parquet", 40, 0)
    new_split(other / "test.parquet", 5, 99)
    run(settings(), small_vit, boxes, tmp_path / "a")
    run(settings(), small_vit, str(other), tmp_path / "b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_sigterm_saves_and_the_same_call_goes_on(settings, boxes, small_vit, tmp_path):
    long = {"steps": 5000, "validation_steps": 5000, "checkpoint_steps": 5000}
    with killing.sigterm(0.3), pytest.raises(KeyboardInterrupt):
        run(settings(**long), small_vit, boxes, tmp_path)
    saved = checkpoint.load(checkpoint.newest(tmp_path / "checkpoints"))
    assert saved.step > 0
    found = run(settings(**long, stop_after_minutes=1e-9), small_vit, boxes, tmp_path)
    assert found["step"] == saved.step + 1


def test_the_same_call_again_returns_the_report_and_another_config_is_refused(
    settings, boxes, small_vit, tmp_path
):
    report = run(settings(steps=3), small_vit, boxes, tmp_path)
    assert run(settings(steps=3, workers=1), small_vit, boxes, tmp_path) == report
    with pytest.raises(UsageError, match=r"segment.steps differ.*--overwrite"):
        run(settings(steps=4), small_vit, boxes, tmp_path)
    again = run(settings(steps=4), small_vit, boxes, tmp_path, overwrite=True)
    assert again["config"]["steps"] == 4


def test_the_floor_is_the_commonest_training_class_everywhere(
    settings, small_vit, new_split, tmp_path
):
    def halves(ids, i):
        ids[:] = 1
        ids[: ids.shape[0] // 4] = 0
        return ids

    new_split(tmp_path / "data" / "train.parquet", 20, 0, spoil=halves)
    new_split(tmp_path / "data" / "test.parquet", 4, 1, spoil=halves)
    report = run(settings(steps=3), small_vit, str(tmp_path / "data"), tmp_path / "out")
    # Class 1 covers about three quarters: its IoU is that, class 0's is 0.
    assert report["pixel_accuracy_floor"] == pytest.approx(75, abs=2)
    assert report["mean_iou_floor"] == pytest.approx(report["pixel_accuracy_floor"] / 2, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, r"batch_size: got 64, expected at most the 32 training images"),
        ({"batch_size": 1}, r"batch_size: got 1, expected a multiple of 1 ranks, two images"),
        ({"image_size": 36}, r"image_size: got 36, expected a multiple of the patch, 8"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_and_leaves_nothing(
    settings, boxes, small_vit, tmp_path, changes, message
):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=message):
        run(settings(**changes), small_vit, boxes, out)
    assert not out.exists()


def test_a_test_mask_with_an_unknown_class_is_refused_before_any_training(
    settings, small_vit, new_split, tmp_path
):
    def spoilt(ids, i):
        ids[5, 5] = 77 if i == 3 else ids[5, 5]
        return ids

    new_split(tmp_path / "data" / "train.parquet", 20, 0)
    new_split(tmp_path / "data" / "test.parquet", 6, 1, spoil=spoilt)
    with pytest.raises(DataError, match=r"row 3: got class id 77, expected 0 to 2, or 255"):
        run(settings(), small_vit, str(tmp_path / "data"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mask_of_another_size_is_refused_before_any_training(
    settings, small_vit, new_split, tmp_path
):
    new_split(tmp_path / "data" / "train.parquet", 20, 0, spoil=lambda ids, i: ids[:-1])
    with pytest.raises(DataError, match=r"the mask of .* row 0: got \d+x\d+ pixels, expected the"):
        run(settings(), small_vit, str(tmp_path / "data"), tmp_path / "out")


def test_masks_of_one_class_are_refused(settings, small_vit, new_split, tmp_path):
    new_split(tmp_path / "data" / "train.parquet", 20, 0, spoil=lambda ids, i: ids * 0)
    with pytest.raises(DataError, match=r"fewer than two classes"):
        run(settings(), small_vit, str(tmp_path / "data"), tmp_path / "out")


def test_settings_that_leave_gaps_or_never_train_are_refused(settings):
    with pytest.raises(UsageError, match=r"segment.stride: got 33, expected at most image_size 32"):
        settings(stride=33)
    with pytest.raises(UsageError, match=r"segment.warmup_steps: got 6, expected less than 6"):
        settings(warmup_steps=6)
    with pytest.raises(UsageError, match=r"segment.head: got 'uper', expected upernet \| linear"):
        settings(head="uper")


def test_a_loss_that_is_not_finite_ends_the_run(settings, boxes, small_vit, tmp_path):
    with pytest.raises(DivergedError, match=r"Lower segment.lr"):
        run(settings(lr=1e12, warmup_steps=0), small_vit, boxes, tmp_path)


@pytest.mark.slow  # the folder's own kill tests are in tests/learning/test_run_folder.py
def test_killed_at_any_moment_it_comes_to_the_same_grade(settings, boxes, small_vit, tmp_path):
    config = settings(steps=8, checkpoint_steps=2)
    whole = run(config, small_vit, boxes, tmp_path / "whole")
    out = tmp_path / "killed"
    kills = killing.kill_until_done(
        functools.partial(run, config, small_vit, boxes, out), whole["seconds"], seed=0
    )
    assert kills > 0
    assert json.loads((out / "report.json").read_text())["value"] == whole["value"]
    assert same(weights(out), weights(tmp_path / "whole"))
    assert sorted(p.name for p in out.iterdir()) == [
        "metrics.jsonl", "model.safetensors", "overlays.png", "report.json", "run.json"
    ]  # fmt: skip
