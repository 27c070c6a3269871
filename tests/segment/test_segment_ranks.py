"""Two processes share the images and agree on the grade."""

import json
import os
import socket

import pytest
import torch
from torch import multiprocessing

from synclr_cli.learning import runtime
from synclr_cli.segment import dense
from synclr_cli.segment.run import loss_of, run


def one_of_two(rank, ports, config, backbone, data, out):
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0]),
    }  # fmt: skip
    torch.set_num_threads(1)
    out.mkdir(exist_ok=True)
    with runtime.started("float32") as rt:
        logits, ids = batch()
        mine = logits[rank::2].requires_grad_()
        loss = loss_of([mine, mine], ids[rank::2], 0.4, rt)
        torch.save((rt.sum(loss) / 2).item(), out / f"loss-{rank}.pt")
    # The second group meets elsewhere: one rank may still be leaving the first.
    os.environ["MASTER_PORT"] = str(ports[1])
    torch.save(run(config, backbone, data, out), out / f"report-{rank}.pt")


def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 8, 8, generator=generator)
    ids = torch.randint(0, 3, (4, 8, 8), generator=generator)
    ids[1, :6] = dense.IGNORED  # the ranks have different numbers of labelled pixels
    return logits, ids


def test_two_ranks_agree_and_weigh_every_labelled_pixel_alike(settings, boxes, small_vit, tmp_path):
    with socket.socket() as s, socket.socket() as t:
        s.bind(("127.0.0.1", 0))
        t.bind(("127.0.0.1", 0))
        ports = s.getsockname()[1], t.getsockname()[1]
    multiprocessing.spawn(one_of_two, (ports, settings(), small_vit, boxes, tmp_path), nprocs=2)
    logits, ids = batch()
    alone = runtime.Runtime(torch.device("cpu"), None)
    expected = loss_of([logits, logits], ids, 0.4, alone).item()
    for rank in range(2):
        assert torch.load(tmp_path / f"loss-{rank}.pt") == pytest.approx(expected, rel=1e-5)
    first, second = (torch.load(tmp_path / f"report-{rank}.pt") for rank in range(2))
    assert first == second
    assert first["n"] == 12
    assert json.loads((tmp_path / "report.json").read_text()) == first
