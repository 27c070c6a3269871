"""Evaluations of small images: it learns, stops, goes on, and refuses what does not fit."""

import functools
import json
from pathlib import Path

import killing
import numpy as np
import pytest
import timm
import torch
from judged import lines, same, weights
from PIL import Image
from safetensors.torch import load_file

from synclr_cli.data import artifacts
from synclr_cli.errors import DivergedError, UsageError
from synclr_cli.finetune import recipe
from synclr_cli.finetune.run import run
from synclr_cli.learning import backbone, checkpoint


def test_it_learns_the_colours_of_stripes_and_reports_it(settings, stripes, small_vit, tmp_path):
    config = settings(
        epochs=6, augment="", random_erasing=0.0, mixup=0.0, cutmix=0.0, drop_path=0.0
    )
    report = run(config, small_vit, stripes, tmp_path / "out")
    assert report["metric"] == "top1"
    assert report["value"] > 60  # chance is 25
    assert report["n"] == 40
    assert report["interval"][0] <= report["value"] <= report["interval"][1]
    kind, epoch = report["selected"]["weights"], report["selected"]["epoch"]
    assert report["value"] == report[f"top1_selected_{kind}"]
    # The selected epoch is the one the validation split liked best.
    column = {"plain": "val_top1", "ema": "val_top1_ema"}[kind]
    best = max(max(line["val_top1"], line["val_top1_ema"]) for line in lines(tmp_path / "out"))
    assert lines(tmp_path / "out")[epoch - 1][column] == best
    assert report["backbone"]["digest"].startswith("sha256:")
    assert report["data"]["digest"].startswith("sha256:")
    assert not (tmp_path / "out" / "checkpoints").exists()
    # timm builds the model from what the file says of it.
    file = tmp_path / "out" / "model.safetensors"
    facts = artifacts.tensors_header(file).facts
    model = timm.create_model(facts["arch"], num_classes=4, **facts["arch_arguments"])
    model.load_state_dict(load_file(file))


def test_stopping_after_every_step_changes_no_weight(settings, stripes, small_vit, tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    full = run(settings(), small_vit, stripes, whole)  # 2 epochs of 4 steps, everything switched on
    stopping = settings(stop_after_minutes=1e-9)
    for step in range(1, 8):
        found = run(stopping, small_vit, stripes, pieces)
        assert found == {"task": "finetune", "finished": False, "step": step, "steps": 8}
    last = run(stopping, small_vit, stripes, pieces)
    assert same(weights(whole), weights(pieces))
    assert last["value"] == full["value"]
    assert lines(whole) == lines(pieces)


def test_a_batch_in_pieces_is_the_same_batch(settings, stripes, small_vit, tmp_path):
    for piece in (0, 6):  # the third piece is smaller
        config = settings(drop_path=0.0, micro_batch=piece)
        run(config, small_vit, stripes, tmp_path / str(piece))
    whole, pieces = weights(tmp_path / "0"), weights(tmp_path / "6")
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_workers_change_no_weight(settings, stripes, small_vit, tmp_path):
    for workers in (0, 2):
        run(settings(epochs=2, workers=workers), small_vit, stripes, tmp_path / str(workers))
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_the_test_split_has_no_say_in_what_is_trained_and_selected(
    settings, stripes, small_vit, new_split, tmp_path
):
    other = tmp_path / "other"
    new_split(other / "train.parquet", 80, 0)
    new_split(other / "test.parquet", 24, 99)
    first = run(settings(), small_vit, stripes, tmp_path / "a")
    second = run(settings(), small_vit, str(other), tmp_path / "b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert first["selected"] == second["selected"]


def test_sigterm_saves_and_the_same_call_goes_on(settings, stripes, small_vit, tmp_path):
    out = tmp_path / "out"
    with killing.sigterm(0.3), pytest.raises(KeyboardInterrupt):
        run(settings(epochs=500), small_vit, stripes, out)
    saved = checkpoint.load(checkpoint.newest(out / "checkpoints"))
    assert saved.step > 0
    found = run(settings(epochs=500, stop_after_minutes=1e-9), small_vit, stripes, out)
    assert found["step"] == saved.step + 1


def test_the_same_call_again_returns_the_report_and_another_config_is_refused(
    settings, stripes, small_vit, tmp_path
):
    out = tmp_path / "out"
    report = run(settings(), small_vit, stripes, out)
    written = (out / "report.json").stat().st_mtime_ns
    assert run(settings(workers=1), small_vit, stripes, out) == report
    assert (out / "report.json").stat().st_mtime_ns == written
    with pytest.raises(UsageError, match=r"finetune.mixup differ.*--overwrite"):
        run(settings(mixup=0.5), small_vit, stripes, out)
    again = run(settings(mixup=0.5), small_vit, stripes, out, overwrite=True)
    assert again["config"]["mixup"] == 0.5
    assert len(lines(out)) == 2


def test_unfinished_work_of_another_config_is_refused(settings, stripes, small_vit, tmp_path):
    run(settings(stop_after_minutes=1e-9), small_vit, stripes, tmp_path)
    with pytest.raises(UsageError, match=r"finetune.seed differ"):
        run(settings(seed=1), small_vit, stripes, tmp_path)


def test_what_a_killed_process_left_half_written_is_passed_over(
    settings, stripes, small_vit, tmp_path
):
    out = tmp_path / "out"
    run(settings(stop_after_minutes=1e-9), small_vit, stripes, out)
    partial = out / "checkpoints" / ".step-00000002.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    with open(out / "metrics.jsonl", "a") as log:
        log.write('{"step": 1, "epo')
    report = run(settings(), small_vit, stripes, out)
    assert report["value"] >= 0
    assert [line["step"] for line in lines(out)] == [4, 8]


def test_the_model_opens_with_timm_and_gives_the_reported_accuracy(
    settings, stripes, small_vit, tmp_path
):
    import timm

    from synclr_cli.data import labelled
    from synclr_cli.finetune import recipe
    from synclr_cli.learning import backbone, metrics, runtime

    report = run(settings(), small_vit, stripes, tmp_path / "out")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=4
    )
    model.load_state_dict(weights(tmp_path / "out"))
    split = labelled.open_data(stripes, validation_share=0.2, seed=0).splits["test"]
    view = recipe.test_view(settings(), backbone.open_backbone(small_vit))
    with runtime.started("float32") as rt:
        found = recipe.predict({"m": model}, split, view, rt, batch_size=7, workers=0)["m"]
    counts = metrics.confusion(split.labels, np.asarray(found), 4)
    assert 100 * metrics.top1(counts) == pytest.approx(report["value"], abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4096}, r"batch_size: got 4096, expected at most the 64 training images"),
        ({"batch_size": 15}, r"batch_size: got 15, expected a multiple of 2, since mixup"),
        ({"image_size": 30}, r"image_size: got 30, expected a multiple of the patch, 8"),
        ({"augment": "rnad-m9"}, r"finetune.augment .*got 'rnad-m9', expected a policy of timm"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_and_leaves_nothing(
    settings, stripes, small_vit, tmp_path, changes, message
):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=message):
        run(settings(**changes), small_vit, stripes, out)
    assert not out.exists()


def test_a_file_in_the_place_of_the_folder_is_refused_at_once(
    settings, stripes, small_vit, tmp_path
):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*--out"):
        run(settings(), small_vit, stripes, tmp_path / "out")


def test_a_warm_up_as_long_as_the_run_is_refused(settings):
    with pytest.raises(UsageError, match=r"warmup_epochs: got 2, expected less than 2 epochs"):
        settings(epochs=2, warmup_epochs=2)


def test_a_loss_that_is_not_finite_ends_the_run(settings, stripes, small_vit, tmp_path):
    with pytest.raises(DivergedError, match=r"Lower finetune.base_lr"):
        run(settings(base_lr=1e12, warmup_epochs=0), small_vit, stripes, Path(tmp_path))


def test_a_view_depends_on_seed_epoch_and_image_alone(settings, stripes, small_vit):
    from synclr_cli.data import labelled
    from synclr_cli.finetune import recipe
    from synclr_cli.learning import backbone

    split = labelled.open_data(stripes, validation_share=0.2, seed=0).splits["train"]
    view = recipe.train_view(settings(), backbone.open_backbone(small_vit))
    first, _ = recipe.train_item(split, view, 0, (3, 5))
    recipe.train_item(split, view, 0, (3, 6))
    np.random.seed(1)
    assert torch.equal(first, recipe.train_item(split, view, 0, (3, 5))[0])
    for seed, key in [(1, (3, 5)), (0, (4, 5))]:
        assert not torch.equal(first, recipe.train_item(split, view, seed, key)[0])


def test_the_strongest_posterisation_of_the_papers_policy_is_a_black_image(settings, small_vit):
    opened = backbone.open_backbone(small_vit)
    view = recipe.train_view(settings(augment="rand-m9-mstd0.5-inc1"), opened)
    grey = Image.new("RGB", (8, 8), (200, 100, 50))
    (augment,) = (part for part in view.transforms if hasattr(part, "ops"))
    (posterise,) = (each for each in augment.ops if each.name.startswith("Posterize"))
    posterise.prob, posterise.magnitude, posterise.magnitude_std = 1.0, 10, 0
    assert posterise(grey).getextrema() == ((0, 0), (0, 0), (0, 0))
    posterise.magnitude = 5  # 4 - 2 bits are kept
    assert posterise(grey).getpixel((0, 0)) == (192, 64, 0)


@pytest.mark.slow  # the folder's own kill tests are in tests/learning/test_run_folder.py
def test_killed_at_any_moment_it_comes_to_the_same_grade(settings, stripes, small_vit, tmp_path):
    config = settings(epochs=3)
    whole = run(config, small_vit, stripes, tmp_path / "whole")
    out = tmp_path / "killed"
    kills = killing.kill_until_done(
        functools.partial(run, config, small_vit, stripes, out), whole["seconds"], seed=0
    )
    assert kills > 0
    assert json.loads((out / "report.json").read_text())["confusion"] == whole["confusion"]
    assert same(weights(out), weights(tmp_path / "whole"))
    assert sorted(p.name for p in out.iterdir()) == [
        "confusion.png", "metrics.jsonl", "model.safetensors", "report.json", "run.json"
    ]  # fmt: skip
