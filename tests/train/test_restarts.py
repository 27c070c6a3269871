"""Under torchrun a killed rank ends the others; a restart goes on from the newest checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from synclr_cli.config import TrainConfig
from synclr_cli.learning import checkpoint


def start(config: TrainConfig, images: Path, out: Path) -> subprocess.Popen[str]:
    """Train on two ranks, as a user starts them."""
    settings = {key: value for key, value in asdict(config).items() if value != ()}
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "--max-restarts=2", "-m", "synclr_cli", "train", str(images), "--preset", "tiny",
            "-o", str(out), "-q",
            *(w for k, v in settings.items() for w in ("--set", f"train.{k}={json.dumps(v)}")),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "SYNCLR_DEVICE": "cpu"},
    )  # fmt: skip


def ranks(torchrun: int) -> dict[int, int]:
    """Return the processes of the ranks that run now, by rank."""
    found = {}
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        for variable in variables:
            if variable.startswith(b"RANK="):
                found[int(variable[5:])] = int(child)
    return found


def lines(out: Path) -> list[dict[str, float]]:
    file = out / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc")
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_other_and_torchrun_goes_on(
    images: Path, small: Callable[..., TrainConfig], tmp_path: Path, victim: int
) -> None:
    config = small(steps=40, checkpoint_steps=4, shard="full")
    out = tmp_path / "run"
    torchrun = start(config, images, out)
    while torchrun.poll() is None and len(lines(out)) < 10:
        time.sleep(0.01)
    assert torchrun.poll() is None, torchrun.communicate()[1]
    first = ranks(torchrun.pid)
    os.kill(first[victim], signal.SIGKILL)
    killed = time.monotonic()
    newest, before = checkpoint.newest(out / "checkpoints"), lines(out)
    other = Path(f"/proc/{first[1 - victim]}")
    while other.exists():
        time.sleep(0.01)
    seconds = time.monotonic() - killed
    said = torchrun.communicate(timeout=120)[1]
    assert torchrun.returncode == 0, said
    assert seconds < 15
    assert [line["step"] for line in lines(out)] == list(range(1, 41))
    # Lines up to the checkpoint are those of before, speeds included; nothing was done again.
    assert newest is not None
    done = int(newest.name.removeprefix("step-"))
    assert 8 <= done < 40 and lines(out)[:done] == before[:done]
    assert said.count("failed (exitcode") == 1 and "failed (exitcode: -9)" in said, said
    assert said.count("error: ") == (victim != 0) and "Traceback" not in said, said
