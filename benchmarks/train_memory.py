"""What micro-batches save and cost: peak memory, time and gradient, beside the whole batch at once.

    OMP_NUM_THREADS=2 python benchmarks/train_memory.py [--captions 64] [--micro-batch 16]
        [--precision auto | float32 | bfloat16] [--compare 4] [--compare-micro-batch 4]

Each variant is a process of its own that does one update of random images; its peak is what the
system says of it, libraries included; seconds are of the wall clock and of the CPU, the second for
machines shared with others. The gradients are compared in float32 on `--compare` captions of 4
images: one batch, whole and by pieces. `--compare 0` and `--updates 0` leave out their part.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection

import torch
from train_step import random_batch

from synclr_cli.config import PRECISIONS, TrainConfig
from synclr_cli.learning import runtime
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.learner import Learner, step_values


def config_of(given: argparse.Namespace, captions: int, micro_batch: int) -> TrainConfig:
    """Return a recipe of ViT-S whose layers are never dropped."""
    return TrainConfig(
        arch=given.arch,
        captions_per_batch=captions,
        prototypes=given.prototypes,
        micro_batch=micro_batch,
        drop_path=0.0,
    )


def update(given: argparse.Namespace, micro_batch: int, pipe: Connection) -> None:
    """Do some updates after a small one, and say what they took."""
    runtime.keep_freed_memory()
    config = config_of(given, given.captions, micro_batch)
    cpu = torch.device("cpu")
    learner = Learner(config, Runtime(cpu, runtime.amp_dtype(given.precision, cpu)))
    now = step_values(1000, config)
    learner.update(random_batch(config_of(given, 2, micro_batch), learner.patches), now)
    batch = random_batch(config, learner.patches)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    taken, taken_cpu = [], []
    for _ in range(given.updates):
        start, start_cpu = time.perf_counter(), time.process_time()
        loss = learner.update(batch, now).losses.total.item()
        taken.append(time.perf_counter() - start)
        taken_cpu.append(time.process_time() - start_cpu)
    pipe.send(
        {
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "before_gib": before,
            "seconds": statistics.median(taken),
            "cpu_seconds": statistics.median(taken_cpu),
            "loss": loss,
        }
    )


def gradients(given: argparse.Namespace) -> float:
    """Return the relative difference of the gradient, whole and by pieces."""
    found = []
    for micro_batch in (0, given.compare_micro_batch):
        config = config_of(given, given.compare, micro_batch)
        learner = Learner(config, Runtime(torch.device("cpu"), None))
        learner.objective.gradient(random_batch(config, learner.patches), 0.05)
        found.append(torch.cat([p.grad.flatten() for p in learner.student.parameters()]))
    whole, pieces = found
    return float((whole - pieces).norm() / whole.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--updates", type=int, default=1)
    parser.add_argument("--compare", type=int, default=4)
    parser.add_argument("--compare-micro-batch", type=int, default=4)
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    given = parser.parse_args()
    context, taken = multiprocessing.get_context("spawn"), {}
    variants = {"by pieces": given.micro_batch, "whole": 0} if given.updates else {}
    for name, micro_batch in variants.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=update, args=(given, micro_batch, theirs))
        process.start()
        while not ours.poll(0.2) and process.is_alive():
            pass
        taken[name] = ours.recv() if ours.poll() else None  # None: killed, for want of memory
        process.join()
        shown = {k: round(v, 3) for k, v in (taken[name] or {}).items()}
        print(json.dumps({"update": name, "images": 4 * given.captions, **shown}), flush=True)
    pieces, whole = taken.get("by pieces"), taken.get("whole")
    summary = {"gradients_differ_by": gradients(given)} if given.compare else {}
    if pieces and whole:
        summary["whole_needs_times"] = round(whole["peak_gib"] / pieces["peak_gib"], 2)
        summary["pieces_take_times"] = round(pieces["seconds"] / whole["seconds"], 2)
        summary["pieces_take_times_of_cpu"] = round(pieces["cpu_seconds"] / whole["cpu_seconds"], 2)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
