"""What Ray costs: one `render --on ray --workers 2` against two processes with `--shard`.

    python benchmarks/render_ray.py [--parts 8] [--part-seconds 30] [--rounds 1]

Both make the same parts of `procedural:` images with two processes of one core each. Time is that
of the commands, Ray's start and end included; the variants take turns, so that what else the
machine does meets both. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VIEWS = 4


def synclr(*arguments: object, core: int | None = None) -> subprocess.Popen[str]:
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    command = [*pinned, sys.executable, "-m", "synclr_cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


LOADS: list[float] = []  # of the machine over the last minute, after each variant


def seconds_of(*jobs: subprocess.Popen[str]) -> float:
    start = time.monotonic()
    for job in jobs:
        job.communicate()
        assert job.returncode == 0
    LOADS.append(round(os.getloadavg()[0], 1))
    return time.monotonic() - start


def render(folder: Path, captions: str, out: str, per_part: int, *more: object) -> list[object]:
    return ["render", folder / captions, "-o", folder / out, "--engine", "procedural:", "--views",
            VIEWS, "--set", f"render.captions_per_part={per_part}", "--quiet", *more]  # fmt: skip


def write_captions(folder: Path, name: str, count: int) -> None:
    seconds_of(synclr("captions", "-c", "in12k", "-n", count, "--engine", "template:", "-o",
                      folder / name, "--quiet"))  # fmt: skip


def captions_of_a_part(folder: Path, seconds: float) -> int:
    """Return how many captions one core renders in some seconds, beside a busy one."""
    write_captions(folder, "probe", 400)
    jobs = [
        synclr(*render(folder, "probe", "probe-images", 20, "--shard", f"{i}/2"), core=i)
        for i in range(2)
    ]
    return max(1, round(200 * seconds / seconds_of(*jobs)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--part-seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        per_part = captions_of_a_part(folder, options.part_seconds)
        write_captions(folder, "captions", per_part * options.parts)
        walls: dict[str, list[float]] = {"shards": [], "ray": []}
        for number in range(options.rounds):
            out = f"shards-{number}"
            walls["shards"].append(
                seconds_of(
                    *(
                        synclr(*render(folder, "captions", out, per_part, "--shard", f"{i}/2"),
                               core=i)
                        for i in range(2)
                    )
                )
            )  # fmt: skip
            on_ray = ("--on", "ray", "--workers", 2)
            walls["ray"].append(
                seconds_of(synclr(*render(folder, "captions", f"ray-{number}", per_part, *on_ray)))
            )
        medians = {variant: statistics.median(times) for variant, times in walls.items()}
    report = {
        "parts": options.parts,
        "captions_per_part": per_part,
        "seconds_of_a_part": 2 * medians["shards"] / options.parts,
        "seconds": walls,
        "overhead": medians["ray"] / medians["shards"] - 1,
        "load_averages": LOADS[-2 * options.rounds :],  # shards, ray, shards, ...
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
