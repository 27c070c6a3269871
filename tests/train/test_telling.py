"""What a run tells on the way: k-NN, trackers, skipped steps, a verdict."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from PIL import Image

from synclr_cli.config import TrainConfig
from synclr_cli.data import storage
from synclr_cli.errors import DataError, DivergedError, EngineError
from synclr_cli.learning import checkpoint
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train import knn, report
from synclr_cli.train.learner import Learner
from synclr_cli.train.objective import Objective
from synclr_cli.train.report import collapse
from synclr_cli.train.run import run

ALONE = Runtime(torch.device("cpu"), None)


def lines(out: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def told(
    images: Path,
    make_images: Callable[..., Path],
    small: Callable[..., TrainConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("told")
    held_out = make_images(folder / "held-out", captions=32, views=2)
    config = small(
        knn_data=str(held_out), knn_steps=4, log_steps=3, trackers=("tensorboard",), steps=6
    )
    return run(config, images, folder / "run")


def test_a_line_tells_speed_time_left_and_health(told: Path) -> None:
    first, *_, last = lines(told)
    for key in ("images_per_s", "left_s", "model_tflop_per_s", "teacher_distance"):
        assert first[key] > 0, key
    assert 0 <= first["data_wait_share"] <= 1
    assert last["left_s"] == 0
    assert "mfu" not in first  # a CPU has no peak that could be named
    for key in ("effective_rank", "similarity_gap", "prototype_perplexity"):
        assert key in last


def test_the_grade_by_neighbours_comes_every_knn_steps_and_last(told: Path) -> None:
    graded = {line["step"]: line.get("knn_top1") for line in lines(told)}
    assert list(graded) == [3, 4, 6]
    assert graded[3] is None
    assert all(0 <= graded[step] <= 100 for step in (4, 6))


def test_the_grade_is_the_written_out_vote_of_the_nearest_images(
    make_images: Callable[..., Path], small: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    held_out = make_images(tmp_path / "held-out", captions=64, views=2)
    config = small(knn_data=str(held_out), knn_images=40)
    grader, learner = knn.open_grader(config), Learner(config, ALONE)
    assert grader is not None and len(grader.known) == 40
    mean = np.array([0.485, 0.456, 0.406])[:, None, None]
    std = np.array([0.229, 0.224, 0.225])[:, None, None]

    def features(images: torch.Tensor) -> np.ndarray:
        x = torch.from_numpy((images.numpy() / 255 - mean) / std).float()
        with torch.no_grad():
            return learner.teacher.vit.forward_features(x)[:, 0].double().numpy()

    expected = reference.knn_top1(
        features(grader.known), grader.known_labels.tolist(),
        features(grader.queries), grader.query_labels.tolist(),
    )  # fmt: skip
    assert 0 < expected < 100
    assert grader.grade(learner, ALONE) == pytest.approx(expected, rel=1e-6)
    assert knn.open_grader(small()) is None
    with pytest.raises(DataError):
        knn.open_grader(small(knn_data=str(tmp_path / "nowhere")))


def test_the_images_graded_on_are_the_files_own_with_their_classes(
    make_images: Callable[..., Path], small: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Images of one colour a class: what class a row of pixels is of can be seen."""

    def paint(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            number = int(row["concept"].split()[1])
            sink = io.BytesIO()
            Image.new("RGB", (48, 48), (30 * number, 0, 0)).save(sink, "PNG")
            row["image"] = {"bytes": sink.getvalue(), "path": None}
        return rows

    held_out = make_images(tmp_path / "held-out", captions=32, views=2, edit=paint)
    grader = knn.open_grader(small(knn_data=str(held_out)))
    assert grader is not None and grader.classes == 8
    for images, labels in (
        (grader.known, grader.known_labels),
        (grader.queries, grader.query_labels),
    ):
        assert (images[:, 0].float().mean((1, 2)).round() == 30 * labels).all()
        assert images.shape[1:] == (3, 32, 32) and not images[:, 1:].any()
    assert (len(grader.known), len(grader.queries)) == (32, 16)  # the test split is left alone


def test_tensorboard_holds_the_numbers_of_the_lines(told: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(told / "tensorboard"))
    events.Reload()
    found = {e.step: e.value for e in events.Scalars("loss")}
    wanted = {line["step"]: line["loss"] for line in lines(told)}
    assert found == pytest.approx(wanted, rel=1e-6)
    assert "lr" in events.Tags()["scalars"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_missing_is_named_before_any_work(
    images: Path,
    small: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    import importlib

    real = importlib.import_module

    def without(wanted: str, *rest: Any) -> Any:
        if wanted == name:
            raise ImportError(f"No module named {name!r}")
        return real(wanted, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(EngineError, match=f"Get it: pip install {name}"):
        run(small(trackers=(name,)), images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_named_like_a_tracker_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synclr_cli.train import trackers

    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineError, match="there is only a folder no_such_tracker"):
        trackers.require(("no_such_tracker",))


@pytest.mark.slow
def test_wandb_offline_holds_the_run(
    images: Path, small: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = run(small(trackers=("wandb",), steps=3), images, tmp_path / "run")
    (made,) = (out / "wandb").glob("offline-run-*")
    assert next(made.glob("*.wandb")).stat().st_size > 500


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], *, late: bool = False) -> None:
    """Let the losses of some steps be no numbers; `late`: the device skips them, as a GPU does."""
    real = Objective.gradient

    def gradient(self: Objective, batch: Any, temperature: float) -> Any:
        losses = real(self, batch, temperature)
        if batch.step in steps:
            next(self.student.parameters()).grad.fill_(torch.nan)
        return losses

    monkeypatch.setattr(Objective, "gradient", gradient)
    monkeypatch.setattr(Learner, "late", late)


@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_is_not_finite_may_be_skipped(
    images: Path,
    small: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: bool,
) -> None:
    spoil(monkeypatch, {1, 4}, late=late)
    out = run(small(skip_nonfinite=2, log_steps=3), images, tmp_path / "run")
    assert [line["step"] for line in lines(out, "skipped.jsonl")] == [1, 4]
    assert len(lines(out, "skipped.jsonl")[0]["caption_ids"]) == 4
    assert [line["skipped"] for line in lines(out)] == [1, 1]
    assert all(np.isfinite(line["loss"]) for line in lines(out))
    assert "not finite in 2 of 6 steps" in report.verdict(out)


def test_a_last_step_that_is_not_finite_is_told_by_a_device_that_tells_late(
    images: Path, small: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {5}, late=True)
    with pytest.raises(DivergedError, match="step 5 is not finite"):
        run(small(), images, tmp_path / "run")


@pytest.mark.parametrize("late", [False, True])
def test_more_skips_than_allowed_end_the_run_which_may_go_on_with_more(
    images: Path,
    small: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: bool,
) -> None:
    spoil(monkeypatch, {2, 4}, late=late)
    config = small(skip_nonfinite=1)
    with pytest.raises(DivergedError, match=r"step 4 is not finite.*skip_nonfinite"):
        run(config, images, tmp_path / "run")
    saved = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.name == "step-00000004"  # of before
    # The bound counts over a resume, and raising it is not another run.
    with pytest.raises(DivergedError):
        run(config, images, tmp_path / "run")
    out = run(small(skip_nonfinite=2), images, tmp_path / "run")
    assert [line["step"] for line in lines(out, "skipped.jsonl")] == [2, 4]


def test_a_run_that_skips_every_step_still_writes_its_lines(
    images: Path, small: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, set(range(5)))
    out = run(small(skip_nonfinite=5, steps=5), images, tmp_path / "run")
    assert [line["skipped"] for line in lines(out)] == [1] * 5


def test_nine_of_ten_updates_skipped_is_a_diverged_run_whatever_may_be_skipped(
    images: Path,
    small: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch, set(range(1, 10)))
    config = small(skip_nonfinite=1000, steps=10)
    for _ in range(2):  # the skips before count after a resume, too
        with pytest.raises(DivergedError, match=r"step 6 is not.*6 of the last 10 steps") as e:
            run(config, images, tmp_path / "run")
        assert e.value.exit_code == 5
    assert not (tmp_path / "run" / "backbone.safetensors").exists()
    assert len(lines(tmp_path / "run", "skipped.jsonl")) == 5


def test_one_step_in_a_hundred_may_be_skipped_without_a_word() -> None:
    lines = [{"step": 100, "skipped": 1}, {"step": 200}]
    assert report.many_skipped(lines) == ""
    assert "not finite in 3 of 200 steps" in report.many_skipped(
        [*lines, {"step": 200, "skipped": 2}]
    )


def test_the_verdict_on_a_collapsed_run_is_said_and_drawn(tmp_path: Path) -> None:
    for step, rank in ((10, 8.0), (20, 1.1), (30, 1.0)):
        line = {"step": step, "loss_global": 3.0, "effective_rank": rank, "grad_norm": None}
        storage.append_line(tmp_path / "metrics.jsonl", line)
    assert "step 30" in report.verdict(tmp_path) and "collapsed" in report.verdict(tmp_path)
    assert report.collapsed_at(report._read(tmp_path)) == 20


def test_a_run_that_really_collapses_is_recognised(
    images: Path, small: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = small(head_norm="layer", peak_lr=0.1, steps=32, log_steps=8)
    out = run(config, images, tmp_path / "run")
    assert "the run has collapsed" in report.verdict(out)
    assert lines(out)[-1]["similarity_gap"] == pytest.approx(0, abs=0.02)


def test_a_step_without_masked_patches_is_no_collapse() -> None:
    assert not collapse({"step": 3, "effective_rank": 9.0, "prototype_perplexity": 0.0})


def test_patches_that_share_one_prototype_are_a_collapse() -> None:
    line = {"step": 7, "effective_rank": 20.0, "prototype_perplexity": 1.0}
    assert "prototypes" in collapse(line)
    assert not collapse(line | {"prototype_perplexity": 30.0})
    assert not collapse({"step": 7})


def test_a_run_without_lines_is_described_without_curves(
    images: Path, small: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    out = run(small(stop_after_minutes=1e-9), images, tmp_path / "run")
    (out / "metrics.jsonl").write_text("")
    shown = subprocess.run(
        [sys.executable, "-m", "synclr_cli", "inspect", str(out)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(shown.stdout)["finished"] is False and not (out / "curves.png").exists()


def test_a_run_whose_folder_takes_no_image_is_described_all_the_same(told: Path) -> None:
    image = told / "curves.png"
    image.mkdir()
    command = [sys.executable, "-m", "synclr_cli", "inspect", str(told)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    image.rmdir()
    assert json.loads(shown.stdout)["finished"] and "cannot write" in shown.stderr
    refused = subprocess.run([*command, "--png", str(told)], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.startswith("error: cannot write")
