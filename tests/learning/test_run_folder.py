"""A run's folder: whose it is, killed anywhere, damaged, in use, overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import killing
import pytest
import torch

from synclr_cli.data import artifacts
from synclr_cli.data.artifacts import Header
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import checkpoint
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.learning.runtime import Runtime

ALONE = Runtime(torch.device("cpu"), None)
STEPS = 3
KINDS = {"train": ("backbone", "backbone.safetensors"), "segment": ("report", "report.json")}


def work(out: Path, kind: str, lr: float, *, overwrite: bool = False, stop: int = STEPS) -> bool:
    """Do a run whose weight is the sum of its learning rates; return whether it was there."""
    schema, result = KINDS[kind]
    header = Header(schema, config={f"{kind}.lr": lr})
    with RunFolder(out, kind, header, ALONE, overwrite=overwrite) as folder:
        if folder.finished():
            return True
        folder.claim()
        saved = folder.resume()
        weight = saved.groups["model"]["w"] if saved else torch.zeros(1)
        for step in range(saved.step if saved else 0, stop):
            weight = weight + lr
            folder.log({"step": step + 1, "w": weight.item()})
            folder.save(step + 1, {"model": {"w": weight}})
            folder.settle()
        if stop < STEPS:
            return False

        def write(path: Path) -> None:
            tensors = artifacts.write_tensors
            if kind == "train":
                tensors(path / result, {"w": weight}, header)
            else:
                tensors(path / "model.safetensors", {"w": weight}, header)
                (path / "overlays.png").write_bytes(b"drawn")
                (path / result).write_text(json.dumps({"w": weight.item()}))

        folder.finish(write)
    return False


def content(out: Path) -> dict[str, bytes]:
    """Return every file of a folder, but for the seconds that a checkpoint tells."""
    files = {str(p.relative_to(out)): p for p in out.rglob("*") if p.is_file()}
    return {name: b"" if "state" in name else p.read_bytes() for name, p in files.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_before_every_write_the_folder_is_that_of_an_uninterrupted_run(
    tmp_path: Path, kind: str
) -> None:
    work(tmp_path / "whole", kind, 0.5)
    out = tmp_path / "killed"
    assert killing.kill_before_every_write(partial(work, out, kind, 0.5)) >= 2 * STEPS
    assert content(out) == content(tmp_path / "whole")
    assert work(out, kind, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_overwritten_run_stays_until_the_new_one_is_whole_whatever_kills_it(
    tmp_path: Path, kind: str
) -> None:
    out, result = tmp_path / "run", KINDS[kind][1]
    work(out, kind, 0.25)
    old = content(out)
    work(tmp_path / "new", kind, 0.5)
    new = content(tmp_path / "new")
    job = partial(work, out, kind, 0.5, overwrite=True)
    kills = 0
    while killing.is_killed_before_write(job, kills + 1):
        kills += 1
        now = content(out)
        shown = {name: data for name, data in now.items() if not name.startswith(".")}
        moving = any((out / name / result).is_file() for name in (".whole", ".placing"))
        assert shown in (old, new) or moving, kills
    assert kills > 2 * STEPS
    assert content(out) == new


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_that_was_killed_before_it_could_tidy_up_is_tidied(
    tmp_path: Path, kind: str
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, out):
        work(folder, kind, 0.5)
    (out / ".lock").touch()
    (out / ".metrics.jsonl.0123.partial").write_text("half")
    if kind != "train":
        (out / "checkpoints" / "step-00000003").mkdir(parents=True)
    assert work(out, kind, 0.5)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_another_overwrite_that_was_not_finished_is_begun_again(tmp_path: Path) -> None:
    work(tmp_path, "segment", 0.25)
    work(tmp_path, "segment", 0.5, overwrite=True, stop=2)
    assert (tmp_path / ".new" / "checkpoints" / "step-00000002").is_dir()
    assert json.loads((tmp_path / "report.json").read_text()) == {"w": 0.75}
    work(tmp_path, "segment", 1.0, overwrite=True)
    assert json.loads((tmp_path / "report.json").read_text()) == {"w": 3.0}
    assert not (tmp_path / ".new").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path, kind: str) -> None:
    hold = textwrap.dedent("""
        import sys
        from pathlib import Path
        from synclr_cli.data import locks
        with locks.locked(Path(sys.argv[1])):
            print("held", flush=True)
            sys.stdin.read()
    """)
    command = [sys.executable, "-c", hold, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="already in use by another process"):
                work(tmp_path, kind, 0.5, overwrite=overwrite)
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]
        other.kill()
    assert not work(tmp_path, kind, 0.5)
    assert work(tmp_path, kind, 0.5)


@pytest.mark.parametrize("file", ["state.json", "model.safetensors"])
@pytest.mark.parametrize("position", [0.1, 0.5, 0.99])
def test_a_flipped_bit_of_a_checkpoint_is_found(
    tmp_path: Path, file: str, position: float, capsys: pytest.CaptureFixture[str]
) -> None:
    work(tmp_path, "segment", 0.5, stop=2)
    damaged = tmp_path / "checkpoints" / "step-00000002" / file
    content = bytearray(damaged.read_bytes())
    content[int(position * len(content))] ^= 4
    damaged.write_bytes(content)
    work(tmp_path, "segment", 0.5)
    assert json.loads((tmp_path / "report.json").read_text()) == {"w": 1.5}
    assert capsys.readouterr().err.count("step-00000002 is damaged and is made again") == 1


def test_without_a_whole_checkpoint_the_way_out_is_named(tmp_path: Path) -> None:
    work(tmp_path, "segment", 0.5, stop=1)
    (checkpoint.path(tmp_path / "checkpoints", 1) / "model.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match=r"is damaged: .*Delete .*checkpoints: the same command"):
        work(tmp_path, "segment", 0.5)


def test_other_settings_and_other_kinds_of_run_are_refused(tmp_path: Path) -> None:
    work(tmp_path, "segment", 0.5, stop=1)
    with pytest.raises(UsageError, match=r"segment.lr differ.*--overwrite"):
        work(tmp_path, "segment", 1.0)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"holds an evaluation. Choose another --out"):
            work(tmp_path, "train", 0.5, overwrite=overwrite)
    work(tmp_path, "segment", 0.5)
    assert json.loads((tmp_path / "report.json").read_text()) == {"w": 1.5}
