"""The command: what it writes, how it goes on after any end, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from synclr_cli.data import artifacts, describe
from synclr_cli.errors import DataError, DivergedError, EngineError, UsageError
from synclr_cli.learning import backbone, checkpoint
from synclr_cli.train import batches
from synclr_cli.train.run import run


def weights(out: Path) -> dict[str, torch.Tensor]:
    return artifacts.read_tensors(out / "backbone.safetensors", "backbone")[0]


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(a: Path, b: Path) -> None:
    mine, theirs = weights(a), weights(b)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    timed = ("images_per_s", "data_wait_share", "left_s", "model_tflop_per_s")
    for x, y in zip(lines(a), lines(b), strict=True):
        assert {k: v for k, v in x.items() if k not in timed} == {
            k: v for k, v in y.items() if k not in timed
        }


@pytest.fixture(scope="module")
def finished(images: Path, small: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(small(), images, tmp_path_factory.mktemp("finished") / "run")


def test_a_finished_run_holds_its_artifacts(finished: Path, images: Path) -> None:
    header = artifacts.tensors_header(finished / "backbone.safetensors")
    assert header.schema == "backbone" and header.parents[0]["name"] == "images"
    assert header.facts is not None and header.facts["steps"] == 6
    assert header.facts["weights"] == "teacher"
    assert [line["step"] for line in lines(finished)] == [1, 2, 3, 4, 5, 6]
    assert not list(finished.rglob("*.partial"))
    names = sorted(p.name for p in (finished / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000006"]


def test_timm_opens_the_run_with_no_code_of_ours(finished: Path) -> None:
    theirs = timm.create_model(f"local-dir:{finished}", num_classes=0, pretrained=True).eval()
    ours = backbone.open_backbone(str(finished)).model.eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs.forward_features(x), ours.forward_features(x))


def test_the_same_command_after_the_end_returns_at_once(
    finished: Path, images: Path, small: Callable
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    assert run(small(workers=1, log_steps=3), images, finished) == finished
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_another_config_is_refused_unless_overwritten(
    finished: Path, images: Path, small: Callable, tmp_path: Path
) -> None:
    out = run(small(steps=3), images, tmp_path / "run")
    with pytest.raises(UsageError, match=r"depth, train\.steps differ\): got 3, 6, exp.* 2, 3"):
        run(small(depth=3), images, out)
    assert len(lines(out)) == 3
    run(small(), images, out, overwrite=True)
    assert_same_run(out, finished)


def test_another_folder_of_images_is_refused(
    finished: Path, make_images: Callable, small: Callable, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="the input other differ"):
        run(small(), make_images(tmp_path / "other", captions=25), finished)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(
    images: Path, small: Callable, overwrite: bool
) -> None:
    before = sorted(images.iterdir())
    with pytest.raises(UsageError, match=r"holds captions or images. Choose another --out"):
        run(small(), images, images, overwrite=overwrite)
    assert sorted(images.iterdir()) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["checkpoints/my.ckpt", "backbone.safetensors", "metrics.jsonl", "config.json"]
)
def test_files_that_no_run_wrote_are_left_alone(
    images: Path, small: Callable, tmp_path: Path, name: str, overwrite: bool
) -> None:
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    with pytest.raises(UsageError, match=r"but no run.json, so it is not a run. Choose another"):
        run(small(), images, tmp_path / "mine", overwrite=overwrite)
    assert [p for p in (tmp_path / "mine").rglob("*") if p.is_file()] == [file]
    assert file.read_text() == "precious"


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_a_second_process_in_the_folder_is_refused(
    finished: Path, images: Path, small: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    hold = textwrap.dedent("""
        import sys
        from pathlib import Path
        from synclr_cli.data import locks
        held = locks.lock(Path(sys.argv[1]), do="wait")
        print("held", flush=True)
        sys.stdin.read()
    """)
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(out / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(
            UsageError, match=r"run is already in use by another process. Wait for it"
        ):
            run(small(), images, out)
        assert [p.name for p in out.iterdir()] == [".lock"]
        other.kill()
    assert_same_run(run(small(), images, out), finished)


def test_others_may_read_what_was_written(images: Path, small: Callable, tmp_path: Path) -> None:
    out = run(small(steps=4, checkpoint_steps=4, backbone_steps=4), images, tmp_path / "run")
    modes = [file.stat().st_mode & 0o777 for file in out.rglob("*.safetensors")]
    usual = (out / "metrics.jsonl").stat().st_mode & 0o777
    assert modes == [usual] * 5


def test_the_last_step_is_saved_before_the_backbone_is_written(
    finished: Path, images: Path, small: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, save = tmp_path / "run", backbone.save

    def full(*_arguments: object, **_names: object) -> None:
        raise EngineError("no space left to write it")

    monkeypatch.setattr(backbone, "save", full)
    with pytest.raises(EngineError, match="no space left"):
        run(small(checkpoint_steps=4), images, out)
    assert checkpoint.newest(out / "checkpoints").name == "step-00000006"
    monkeypatch.setattr(backbone, "save", save)
    assert_same_run(run(small(checkpoint_steps=4), images, out), finished)


def test_minutes_that_are_up_save_and_return(
    finished: Path, images: Path, small: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for done in (1, 2):
        assert run(small(stop_after_minutes=1e-9), images, out) == out
        newest = checkpoint.newest(out / "checkpoints")
        assert newest is not None and newest.name == f"step-{done:08d}"
        assert not (out / "backbone.safetensors").exists()
    run(small(), images, out)
    assert_same_run(out, finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_finishes(
    finished: Path,
    images: Path,
    small: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    out, make = tmp_path / "run", batches.Batches.make

    def make_and_signal(self: batches.Batches, step: int) -> batches.Batch:
        if step == 1:
            os.kill(os.getpid(), number)
        return make(self, step)

    monkeypatch.setattr(batches.Batches, "make", make_and_signal)
    with pytest.raises(KeyboardInterrupt):
        run(small(), images, out)
    monkeypatch.undo()
    assert checkpoint.newest(out / "checkpoints").name == "step-00000002"
    run(small(), images, out)
    assert_same_run(out, finished)


def test_kill_9_at_any_time_costs_only_the_steps_since_the_checkpoint(
    images: Path, small: Callable, tmp_path: Path
) -> None:
    config = small(steps=40, checkpoint_steps=2)
    expected = run(config, images, tmp_path / "straight")
    out = tmp_path / "killed"
    program = textwrap.dedent(
        f"""
        import sys, torch
        from pathlib import Path
        from synclr_cli.config import TrainConfig
        from synclr_cli.train.run import run
        torch.set_num_threads(1)
        run(TrainConfig(**{asdict(config) | {"workers": 1}!r}), Path({str(images)!r}),
            Path({str(out)!r}))
        """
    )
    kills = 0
    for wanted in (3, 9):  # kill as soon as this many lines are logged
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        while process.poll() is None:
            log = out / "metrics.jsonl"
            if log.is_file() and log.read_bytes().count(b"\n") >= wanted:
                process.kill()
            time.sleep(0.005)
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 1
    run(config, images, out)
    assert_same_run(out, expected)


def test_a_damaged_image_is_listed(
    make_images: Callable, small: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def edit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[42]["image"] = {"bytes": b"\xff\xd8 no image", "path": None}
        return rows

    folder = make_images(tmp_path / "images", captions=30, edit=edit)
    out = run(small(views=4, captions_per_batch=30, steps=3), folder, tmp_path / "run")
    assert [line["damaged"] for line in lines(out)] == [1, 1, 1]
    said = capsys.readouterr().err
    assert said.count("1 images did not decode and were replaced") == 1
    assert describe.describe(out).facts["damaged"] == 1
    (listed,) = [json.loads(x) for x in (out / "damaged.jsonl").read_text().splitlines()]
    assert (listed["caption_id"], listed["view"]) == (110, 2)
    assert "part-00000.parquet row 42" in listed["what"]


def test_images_that_cannot_be_read_end_the_run_after_a_checkpoint(
    finished: Path,
    images: Path,
    small: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, make = tmp_path / "run", batches.Batches.make

    def make_or_fail(self: batches.Batches, step: int) -> batches.Batch:
        if step == 4:
            raise DataError("the line to the store is down")
        return make(self, step)

    monkeypatch.setattr(batches.Batches, "make", make_or_fail)
    for _ in range(2):  # the second has nothing new to save
        with pytest.raises(DataError, match="the line to the store is down"):
            run(small(), images, out)
        assert checkpoint.newest(out / "checkpoints").name == "step-00000004"
    monkeypatch.undo()
    assert_same_run(run(small(), images, out), finished)


def test_too_much_damage_is_listed_before_it_ends_the_run(
    make_images: Callable, small: Callable, tmp_path: Path
) -> None:
    def edit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows[40:44]:
            row["image"] = {"bytes": b"no image", "path": None}
        return rows

    folder, out = make_images(tmp_path / "images", edit=edit), tmp_path / "run"
    with pytest.raises(DataError, match="expected at most 1%"):
        run(small(captions_per_batch=12), folder, out)
    assert len((out / "damaged.jsonl").read_text().splitlines()) == 4


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed", "flipped state"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    finished: Path,
    images: Path,
    small: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    damage: str,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "backbone.safetensors").unlink()
    newest = out / "checkpoints" / "step-00000006"
    file = newest / ("state.json" if "state" in damage else "teacher.safetensors")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "removed":
        file.unlink()
    else:
        flip_a_byte(file)
    assert_same_run(run(small(), images, out), finished)
    (warning,) = [x for x in capsys.readouterr().err.splitlines() if "warning" in x]
    assert "step-00000006 is damaged and is made again" in warning
    assert checkpoint.load(newest).step == 6


def test_with_every_checkpoint_damaged_the_way_out_is_named(
    finished: Path, images: Path, small: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "backbone.safetensors").unlink()
    for file in out.rglob("student.safetensors"):
        flip_a_byte(file)
    with pytest.raises(DataError, match=r"digest differs.*Delete .*checkpoints: the same command"):
        run(small(), images, out)
    shutil.rmtree(out / "checkpoints")
    assert_same_run(run(small(), images, out), finished)


def test_a_diverged_run_names_the_captions_and_keeps_a_checkpoint(
    images: Path, small: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"not finite.*captions 1\d\d, 1\d\d.*peak_lr"):
        run(small(peak_lr=1e12, steps=20, head_norm="layer"), images, out)
    newest = checkpoint.newest(out / "checkpoints")
    saved = checkpoint.load(newest)
    assert all(torch.isfinite(t).all() for t in saved.groups["student"].values())
    assert not (out / "backbone.safetensors").exists()


@pytest.mark.parametrize(
    ("folder", "change", "error"),
    [
        ("none", {}, DataError),
        ("images", {"image_size": 30}, UsageError),
        ("images", {"captions_per_batch": 1000}, DataError),
        ("images", {"views": 9}, DataError),
        ("images", {"arch": "vit_tinny"}, UsageError),
        ("images", {"arch": "timm:vit_tiny_patch16_224"}, UsageError),
        ("images", {"mask_ratio": 0.01}, UsageError),
        ("images", {"mask_probability": 0.01}, UsageError),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    images: Path, small: Callable, tmp_path: Path, folder: str, change: dict, error: type
) -> None:
    with pytest.raises(error):
        run(small(**change), images.parent / folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_in_bfloat16_stays_close(
    finished: Path, images: Path, small: Callable, tmp_path: Path
) -> None:
    out = run(small(precision="bfloat16"), images, tmp_path / "run")
    ours, theirs = ([line["loss"] for line in lines(folder)] for folder in (out, finished))
    # The first update has a learning rate of 0, so two losses are of the same weights; later ones
    # are of weights that rounding has led apart, and only have to fall as well.
    assert ours[:2] == pytest.approx(theirs[:2], rel=0.01)
    assert ours[-1] < 0.9 * ours[0]
