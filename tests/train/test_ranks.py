"""Two processes with half of the batch each do what one does with all of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from synclr_cli.config import TrainConfig
from synclr_cli.data.manifest import open_dataset
from synclr_cli.errors import DataError, SynclrError
from synclr_cli.learning import checkpoint, gradients, runtime
from synclr_cli.train import batches
from synclr_cli.train.image_index import ImageIndex
from synclr_cli.train.learner import Learner, step_values
from synclr_cli.train.run import run

UPDATES = 3


def train(images: Path, config: TrainConfig) -> dict[str, Any]:
    """Do some updates in float64; return this rank's gradient, weights and losses."""
    torch.set_num_threads(1)
    gradients.BUCKET = 1 << 16  # several of them
    with runtime.started("float32") as rt:
        index = ImageIndex(open_dataset(images, "images"))
        learner = Learner(config, rt, index.classes(config.positives))
        learner.student.double()
        learner.teacher.double()
        source = batches.Batches(
            index, config, patches=learner.patches, rank=rt.rank, world=rt.world
        )
        losses = []
        for step in range(UPDATES):
            update = learner.update(source.make(step), step_values(step, config))
            terms = (update.losses.of_globals, update.losses.of_locals, update.losses.of_patches)
            losses.append(rt.sum(torch.stack(terms)) / rt.world)
        return {
            "losses": torch.stack(losses),
            "norm": update.grad_norm,
            "student": {k: v.clone() for k, v in learner.student.state_dict().items()},
            "teacher": {k: v.clone() for k, v in learner.teacher.state_dict().items()},
        }


def one_of_two(
    rank: int, ports: list[int], images: Path, out: Path, configs: dict[str, TrainConfig]
) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip
    for port, (name, config) in zip(ports, configs.items(), strict=False):
        os.environ["MASTER_PORT"] = str(port)  # one rank may still be leaving the last meeting
        torch.save(train(images, config), out / f"{name}-{rank}.pt")
    os.environ["MASTER_PORT"] = str(ports[-3])
    run(configs["batch"], images, out / "run")
    make = batches.Batches.make

    def make_or_fail(self: batches.Batches, step: int) -> batches.Batch:
        if step == 2 and rank == 1:
            raise DataError("the line to the store is down")
        return make(self, step)

    os.environ["MASTER_PORT"] = str(ports[-2])
    batches.Batches.make = make_or_fail
    try:
        run(configs["batch"], images, out / "unread")
    except SynclrError as e:
        said = {"text": str(e), "code": e.exit_code, "speaker": e.speaker}
        (out / f"unread-{rank}.json").write_text(json.dumps(said), encoding="utf-8")
    batches.Batches.make = make
    os.environ["MASTER_PORT"] = str(ports[-1])
    run(replace(configs["sharded"], stop_after_minutes=1e-9), images, out / "moved")


@pytest.fixture(scope="module")
def configs(small: Callable) -> dict[str, TrainConfig]:
    common = {"workers": 0, "patch_weight": 0.7}
    alone = {"workers": 0, "patch_weight": 0.0, "teacher": False}  # both sides are trained
    return {n: small(head_norm=n, **common) for n in ("batch", "layer")} | {
        "micro-batches": small(micro_batch=2, **common),
        "sharded": small(shard_optimizer=True, **common),
        "stablerep": small(**alone),
        "simclr": small(**alone, positives="image", views=2, global_crops=2),
        "supervised": small(**alone, positives="concept", objective="cross-entropy"),
    }


@pytest.fixture(scope="module")
def two(
    images: Path, configs: dict[str, TrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(len(configs) + 3)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        ports = [s.getsockname()[1] for s in sockets]
    multiprocessing.spawn(one_of_two, (ports, images, out, configs), nprocs=2)
    return out


@pytest.mark.parametrize(
    "name", ["batch", "layer", "micro-batches", "sharded", "stablerep", "simclr", "supervised"]
)
def test_two_ranks_do_what_one_does(
    images: Path, configs: dict[str, TrainConfig], two: Path, name: str
) -> None:
    alone = train(images, configs[name])
    ranks = [torch.load(two / f"{name}-{rank}.pt") for rank in range(2)]
    for rank in ranks:
        torch.testing.assert_close(rank["losses"], alone["losses"], rtol=1e-9, atol=0)
        torch.testing.assert_close(rank["norm"], alone["norm"], rtol=1e-9, atol=0)
        for part in ("student", "teacher"):
            for key, tensor in alone[part].items():
                torch.testing.assert_close(
                    rank[part][key], tensor, rtol=1e-7, atol=1e-9, msg=f"{part} {key}"
                )


def test_two_ranks_write_one_run(two: Path) -> None:
    assert (two / "run" / "backbone.safetensors").is_file()
    assert len((two / "run" / "metrics.jsonl").read_text().splitlines()) == 6
    assert [p.name for p in (two / "run" / "checkpoints").iterdir()]


def test_images_that_one_rank_cannot_read_end_all_after_a_checkpoint(two: Path) -> None:
    first, second = (json.loads((two / f"unread-{rank}.json").read_text()) for rank in range(2))
    assert second == {"text": "the line to the store is down", "code": 3, "speaker": True}
    assert (first["code"], first["speaker"]) == (3, False)
    newest = checkpoint.newest(two / "unread" / "checkpoints")
    assert newest is not None and newest.name == "step-00000002"


def test_a_run_goes_on_with_another_number_of_ranks(
    images: Path, configs: dict[str, TrainConfig], two: Path, tmp_path: Path
) -> None:
    """Two ranks, their optimiser in shards, stopped after a step; one does the rest."""
    assert [p.name for p in (two / "moved" / "checkpoints").iterdir()] == ["step-00000001"]
    moved = tmp_path / "moved"
    shutil.copytree(two / "moved", moved)
    run(configs["sharded"], images, moved)
    straight = run(configs["batch"], images, tmp_path / "straight")
    losses = [
        [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (moved, straight)
    ]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
