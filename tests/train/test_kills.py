"""Thirty steps straight are thirty steps with five kills in between, to the bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from synclr_cli.config import TrainConfig
from synclr_cli.data import artifacts
from synclr_cli.train.run import run

KILLS = 5
TIMED = ("images_per_s", "data_wait_share", "mfu", "model_tflop_per_s", "left_s")


def start(config: TrainConfig, images: Path, out: Path) -> subprocess.Popen[bytes]:
    program = textwrap.dedent(
        f"""
        import torch
        from pathlib import Path
        from synclr_cli.config import TrainConfig
        from synclr_cli.train.run import run
        torch.set_num_threads(1)
        run(TrainConfig(**{asdict(config)!r}), Path({str(images)!r}), Path({str(out)!r}))
        """
    )
    return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)


def lines(out: Path) -> list[dict[str, Any]]:
    log = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in TIMED} for x in log]


@pytest.mark.slow
def test_five_kills_at_random_moments_change_no_bit(
    images: Path, small: Callable, tmp_path: Path
) -> None:
    config = small(steps=30, checkpoint_steps=2, log_steps=1)
    torch.set_num_threads(1)
    expected = run(config, images, tmp_path / "straight")
    out, rng, kills = tmp_path / "killed", random.Random(5), 0
    for workers in (1, 2, 0, 2, 1):
        process = start(replace(config, workers=workers), images, out)
        log = out / "metrics.jsonl"
        before = len(lines(out)) if log.is_file() else 0
        while process.poll() is None and (
            not log.is_file() or log.read_bytes().count(b"\n") < max(1, before - 1)
        ):
            time.sleep(0.005)  # until it has begun: a kill of the imports would prove nothing
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.wait()
        kills += process.returncode == -signal.SIGKILL
    assert kills == KILLS
    run(replace(config, workers=1), images, out)
    mine, theirs = (
        artifacts.read_tensors(folder / "backbone.safetensors", "backbone")[0]
        for folder in (out, expected)
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert lines(out) == lines(expected)
