"""Two processes with half of the batch each do what one does with all of it."""

import os
import socket

import torch
from safetensors.torch import load_file
from torch import multiprocessing

from synclr_cli.finetune.run import run


def one_of_two(rank, port, config, backbone, data, out):
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    report = run(config, backbone, data, out)
    torch.save(report["value"], out / f"{rank}.pt")


def test_two_ranks_fine_tune_as_one_does(settings, stripes, small_vit, tmp_path):
    # Mixing and stochastic depth are drawn per rank; the rest must not notice the ranks.
    config = settings(epochs=2, mixup=0.0, cutmix=0.0, drop_path=0.0, batch_size=16)
    alone = run(config, small_vit, stripes, tmp_path / "one")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    two = tmp_path / "two"
    multiprocessing.spawn(one_of_two, (port, config, small_vit, stripes, two), nprocs=2)
    assert [torch.load(two / f"{rank}.pt") for rank in range(2)] == [alone["value"]] * 2
    ours, theirs = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert not (two / "checkpoints").exists()
