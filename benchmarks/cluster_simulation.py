"""A cluster on paper: 600 M images, 64 GPUs, a bucket of 100 Gbit/s.

    python benchmarks/cluster_simulation.py [--preset vitb] [--gpus 64] [--trials 400] [--json]

What the bucket must give comes from arithmetic: parts, row groups, bytes. What is lost to
stragglers and restarts is a Monte Carlo with one seed:

- rendering: a part takes its mean x a lognormal factor (sigma 0.1); a worker in 50 is slow
  (x 1.5); a worker dies with a mean time of 1,000 GPU hours, loses its part, and is back after
  10 minutes; parts are handed to whoever is free.
- training: a step takes the longest of 64 ranks, each its mean x (1 + |N(0, 0.02)|), and one rank
  in 64 x 1000 steps stalls for an exponential 5 s; a rank dies with the same mean time, the job is
  back after 10 minutes, and goes on from the newest checkpoint.

Means are those of `synclr plan`, an estimate. Nothing here ran on a cluster.
"""

from __future__ import annotations

import argparse
import heapq
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from synclr_cli.config import PlanConfig
from synclr_cli.plan import recipe as recipes, run as estimate

HOUR = 3600.0
ROW_GROUP = 16 << 20  # bytes read with one request


@dataclass(frozen=True)
class Faults:
    """What goes wrong on the cluster; every value is an assumption."""

    part_sigma: float = 0.1  # of the logarithm of a part's time
    slow_share: float = 0.02  # of the workers
    slow_factor: float = 1.5
    hours_to_failure: float = 1000.0  # of one GPU, exponential
    restart_s: float = 600.0
    step_sigma: float = 0.02  # of a rank's time, half a normal
    stall_share: float = 1e-3 / 64  # of a rank's steps
    stall_s: float = 5.0  # mean, exponential


def rendering(
    gpus: int, parts: int, part_s: float, faults: Faults, rng: np.random.Generator
) -> dict[str, float]:
    """Return hours and what was lost of rendering `parts`, handed to whoever is free."""
    slow = np.where(rng.random(gpus) < faults.slow_share, faults.slow_factor, 1.0)  # [gpus]
    free = [(0.0, worker) for worker in range(gpus)]
    fails = rng.exponential(faults.hours_to_failure * HOUR, gpus)  # [gpus], when it next dies
    bias = np.exp(-(faults.part_sigma**2) / 2)  # the factor's mean is 1
    factors = bias * np.exp(rng.normal(0, faults.part_sigma, parts))  # [parts]
    lost, deaths, todo = 0.0, 0, parts
    end = 0.0
    while todo:
        now, worker = heapq.heappop(free)
        finish = now + part_s * factors[todo - 1] * slow[worker]
        if finish > fails[worker]:  # the part is made again, by whoever is free
            lost += fails[worker] - now + faults.restart_s
            deaths += 1
            now = fails[worker] + faults.restart_s
            fails[worker] = now + rng.exponential(faults.hours_to_failure * HOUR)
            heapq.heappush(free, (now, worker))
            continue
        todo -= 1
        end = max(end, finish)
        heapq.heappush(free, (finish, worker))
    idle = sum(end - now for now, _ in free)
    return {
        "hours": end / HOUR,
        "deaths": deaths,
        "lost_to_restarts": lost / (gpus * end),
        "lost_to_the_tail": idle / (gpus * end),
        "longer_than_perfect": end / (parts * part_s / gpus) - 1,
    }


def training(
    gpus: int, steps: int, step_s: float, checkpoint: int, faults: Faults, rng: np.random.Generator
) -> dict[str, float]:
    """Return hours and what was lost of training: every step waits for the slowest rank."""
    sample = 2000  # steps that are drawn; their mean stands for all
    own = 1 + np.abs(rng.normal(0, faults.step_sigma, (sample, gpus)))  # [sample, gpus]
    stalls = rng.random((sample, gpus)) < faults.stall_share
    own = own * step_s + stalls * rng.exponential(faults.stall_s, (sample, gpus))
    mean = own.max(1).mean()
    straggling = mean / step_s - 1
    at, clock, deaths, lost = 0, 0.0, 0, 0.0
    fail = rng.exponential(faults.hours_to_failure * HOUR / gpus)
    while at < steps:
        reach = at + int((fail - clock) / mean)  # the step that a death interrupts
        if reach >= steps:
            clock += (steps - at) * mean
            break
        back = reach // checkpoint * checkpoint
        deaths += 1
        lost += (reach - back) * mean + faults.restart_s
        clock = fail + faults.restart_s
        at = back
        fail = clock + rng.exponential(faults.hours_to_failure * HOUR / gpus)
    return {
        "hours": clock / HOUR,
        "deaths": deaths,
        "lost_to_stragglers": straggling,
        "lost_to_restarts": lost / clock,
    }


def bucket(plan: dict[str, Any], gbit: float) -> dict[str, float]:
    """Return what training asks of the bucket."""
    train, render = plan["train"], plan["render"]
    part_bytes = render["bytes"] / render["parts"]
    per_s = train["read_bytes_per_s"]
    requests = max(1, round(part_bytes / ROW_GROUP))
    return {
        "part_mb": part_bytes / 1e6,
        "read_gb_per_s": per_s / 1e9,
        "bucket_gb_per_s": gbit / 8,
        "share_of_bucket": per_s / (gbit * 1e9 / 8),
        "requests_per_s_whole_row_groups": per_s / part_bytes * requests,
        "requests_per_s_image_by_image": train["images"] / (train["hours"] * HOUR),
        "epochs": train["epochs"],
        "read_pb": train["images"] * render["bytes"] / render["rows"] / 1e15,
        "render_write_mb_per_s": render["bytes"] / (render["hours"] * HOUR) / 1e6,
        "render_parts_per_s": render["parts"] / (render["hours"] * HOUR),
    }


def summary(trials: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Return median and 95th percentile of each number over the trials."""
    return {
        key: tuple(float(x) for x in np.percentile([t[key] for t in trials], (50, 95)))
        for key in trials[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="vitb")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--bucket-gbit", type=float, default=100.0)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--render-trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    recipe = recipes.read(given.preset, [])
    assert recipe.train
    config = PlanConfig(gpus=given.gpus, gpu=given.gpu, storage_gbit=given.bucket_gbit)
    plan = estimate.run(recipe, config)
    faults = Faults()
    rng = np.random.default_rng(given.seed)
    render, train = plan["render"], plan["train"]
    part_s = render["hours"] * HOUR * given.gpus / render["parts"]
    result: dict[str, Any] = {
        "plan_hours": {name: plan[name]["hours"] for name in ("captions", "render", "train")},
        "bucket": bucket(plan, given.bucket_gbit),
        "part_s": part_s,
        "render": summary(
            [
                rendering(given.gpus, render["parts"], part_s, faults, rng)
                for _ in range(given.render_trials)
            ]
        ),
    }
    for checkpoint in (recipe.train.checkpoint_steps, 100, 5000):
        result[f"train, a checkpoint every {checkpoint} steps"] = summary(
            [
                training(
                    given.gpus, train["steps"], train["seconds_per_step"], checkpoint, faults, rng
                )
                for _ in range(given.trials)
            ]
        )
    frail = replace(faults, hours_to_failure=100.0)
    result["train, GPUs that fail ten times as often"] = summary(
        [
            training(
                given.gpus,
                train["steps"],
                train["seconds_per_step"],
                recipe.train.checkpoint_steps,
                frail,
                rng,
            )
            for _ in range(given.trials)
        ]
    )
    if given.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if not isinstance(value, dict):
            print(f"{name}: {value:.4g}")
            continue
        print(f"\n{name}")
        for key, number in value.items():
            shown = number if isinstance(number, tuple) else (number,)
            print(f"  {key:34}" + "  ".join(f"{x:10.4g}" for x in shown))


if __name__ == "__main__":
    main()
