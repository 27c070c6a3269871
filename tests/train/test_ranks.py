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
from torch import Tensor, multiprocessing, nn

from synclr_cli.config import TrainConfig
from synclr_cli.data import artifacts
from synclr_cli.data.manifest import open_dataset
from synclr_cli.errors import DataError, SynclrError
from synclr_cli.learning import checkpoint, gradients, runtime
from synclr_cli.learning.sharded import is_sharded, share
from synclr_cli.train import batches
from synclr_cli.train.image_index import ImageIndex
from synclr_cli.train.learner import Learner, step_values
from synclr_cli.train.run import run

UPDATES = 3


def whole(model: nn.Module) -> dict[str, Tensor]:
    weights = model.state_dict().items()
    return {k: v.full_tensor() if is_sharded(v) else v.clone() for k, v in weights}


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
        losses, models = [], (learner.student, learner.teacher)
        for step in range(UPDATES):
            update = learner.update(source.make(step), step_values(step, config))
            terms = (update.losses.of_globals, update.losses.of_locals, update.losses.of_patches)
            losses.append(rt.sum(torch.stack(terms)) / rt.world)
        return {
            "losses": torch.stack(losses),
            "norm": update.grad_norm,
            "held": [sum(share(p).numel() for p in m.parameters()) for m in models],
            "student": whole(learner.student),
            "teacher": whole(learner.teacher),
        }


def one_of_two(
    rank: int, ports: list[int], images: Path, out: Path, configs: dict[str, TrainConfig]
) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip
    for port, (name, config) in zip(ports, configs.items(), strict=False):
        if name == "whole":
            continue
        os.environ["MASTER_PORT"] = str(port)  # one rank may still be leaving the last meeting
        torch.save(train(images, config), out / f"{name}-{rank}.pt")
    os.environ["MASTER_PORT"] = str(ports[-5])
    run(replace(configs["whole"], shard="full"), images, out / "from-one")
    os.environ["MASTER_PORT"] = str(ports[-4])
    run(stopped(replace(configs["whole"], shard="full")), images, out / "full-moved")
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
    run(stopped(configs["optimizer"]), images, out / "moved")


def stopped(config: TrainConfig) -> TrainConfig:
    return replace(config, stop_after_minutes=1e-9)  # after a step


@pytest.fixture(scope="module")
def configs(small: Callable) -> dict[str, TrainConfig]:
    common = {"workers": 0, "patch_weight": 0.7}
    alone = {"workers": 0, "patch_weight": 0.0, "teacher": False}  # both sides are trained
    return {n: small(head_norm=n, **common) for n in ("batch", "layer")} | {
        "micro-batches": small(micro_batch=2, **common),
        "optimizer": small(shard="optimizer", **common),
        "full": small(shard="full", clip_grad=0.5, **common),
        "full-micro": small(shard="full", micro_batch=2, head_norm="layer", **common),
        "full-stablerep": small(shard="full", **alone),
        "stablerep": small(**alone),
        "simclr": small(**alone, positives="image", views=2, global_crops=2),
        "supervised": small(**alone, positives="concept", objective="cross-entropy"),
        # All that a run does with a whole teacher.
        "whole": small(knn_data="digits:", knn_images=64, knn_steps=6, backbone_steps=3, **common),
    }


@pytest.fixture(scope="module")
def two(
    images: Path, configs: dict[str, TrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    run(stopped(configs["whole"]), images, out / "from-one")
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(len(configs) + 5)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        ports = [s.getsockname()[1] for s in sockets]
    multiprocessing.spawn(one_of_two, (ports, images, out, configs), nprocs=2)
    return out


@pytest.mark.parametrize(
    "name",
    [
        "batch",
        "layer",
        "micro-batches",
        "optimizer",
        "full",
        "full-micro",
        "full-stablerep",
        "stablerep",
        "simclr",
        "supervised",
    ],
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


def test_every_weight_is_on_one_rank_if_they_share_all(two: Path) -> None:
    whole = torch.load(two / "layer-0.pt")["held"]
    shares = [torch.load(two / f"full-micro-{rank}.pt")["held"] for rank in range(2)]
    assert [sum(of_ranks) for of_ranks in zip(*shares, strict=True)] == whole
    assert max(shares[0][0], shares[1][0]) < 0.52 * whole[0]


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


def metrics(out: Path, key: str) -> list[float]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[key] for line in lines if key in json.loads(line)]


@pytest.mark.parametrize("shared", ["optimizer", "full"])
def test_a_run_of_two_ranks_that_share_goes_on_with_one(
    images: Path, configs: dict[str, TrainConfig], two: Path, tmp_path: Path, shared: str
) -> None:
    """Two ranks, stopped after a step; one does the rest."""
    folder = {"optimizer": "moved", "full": "full-moved"}[shared]
    config = {"optimizer": configs["optimizer"], "full": configs["whole"]}[shared]
    assert [p.name for p in (two / folder / "checkpoints").iterdir()] == ["step-00000001"]
    moved = tmp_path / "moved"
    shutil.copytree(two / folder, moved)
    run(config, images, moved)
    straight = run(configs["batch"], images, tmp_path / "straight")
    assert len(metrics(moved, "loss")) == 6
    for key in ("loss", "teacher_distance"):
        assert metrics(moved, key) == pytest.approx(metrics(straight, key), rel=1e-4)


def test_a_run_of_one_rank_goes_on_with_two_that_share_all(
    images: Path, configs: dict[str, TrainConfig], two: Path, tmp_path: Path
) -> None:
    moved, straight = two / "from-one", run(configs["whole"], images, tmp_path / "straight")
    assert len(metrics(moved, "loss")) == 6
    for key in ("loss", "teacher_distance", "grad_norm"):
        assert metrics(moved, key) == pytest.approx(metrics(straight, key), rel=1e-4)
    assert metrics(moved, "knn_top1") == pytest.approx(metrics(straight, "knn_top1"), abs=4)
    for folder in (".", "backbones/step-00000003"):
        weights, expected = (
            artifacts.read_tensors(out / folder / "backbone.safetensors", "backbone")[0]
            for out in (moved, straight)
        )
        assert weights.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
