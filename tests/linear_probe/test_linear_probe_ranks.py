"""Two processes share the images and come to the grade of one."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import multiprocessing

from synclr_cli.linear_probe.run import run

BACKBONE = "random:vit_tiny_patch16_224"


def one_of_two(rank, port, config, data, out):
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    torch.save(run(config, BACKBONE, data, out), out.with_suffix(f".{rank}.pt"))


@pytest.mark.parametrize("protocol", ["lbfgs", "sgd"])
def test_two_ranks_judge_as_one_does(small, stripes, tmp_path, protocol):
    config = small(protocol=protocol, precision="float32", sgd_batch_size=12, epochs=2, penalties=3)
    alone = run(config, BACKBONE, str(stripes), tmp_path / "one")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    two = tmp_path / "two"
    multiprocessing.spawn(one_of_two, (port, config, str(stripes), two), nprocs=2)
    first, second = (torch.load(two.with_suffix(f".{rank}.pt")) for rank in range(2))
    assert first == second
    for key in ("value", "validation", "confusion"):
        assert first[key] == alone[key], key
    assert not [p.name for p in two.iterdir() if p.name.startswith(".") or p.is_dir()]


def test_several_judgements_share_one_group_of_ranks(stripes, tmp_path):
    """As a user starts it: torchrun, two ranks, two backbones, one table."""
    settings = ("image_size=32", "penalties=3", "workers=0", "iterations=40")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--standalone", "-m", "synclr_cli", "linear-probe", "pixels:4", "pixels:8",
            "--data", str(stripes), "-o", str(tmp_path / "out"), "-q",
            *(word for each in settings for word in ("--set", f"linear-probe.{each}")),
        ],
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["backbone"] for row in rows] == ["pixels:4", "pixels:8"]
