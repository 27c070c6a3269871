"""How fast `synclr render` is with `pocket:`, few steps against the flow with guidance.

    synclr captions -p cifar -n 256 -o captions.parquet
    python benchmarks/render_pocket.py captions.parquet [--rounds 3] [--dtype auto] [--json FILE]

The whole command as a process of its own, start and loading included, four views of each caption,
variants in turn. Prints for each the median of images per second (by the clock, and per second of
processor time, which other work on the machine disturbs less) and its ratio to the first row.
For a machine without bfloat16: --dtype float32, ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2.
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
from typing import NamedTuple

import pyarrow.parquet as pq

from synclr_cli.data import artifacts

VIEWS = 4
VARIANTS = {
    "flow, 10 steps, guidance 1.5": ("render.engine.steps=10", "render.engine.guidance=1.5"),
    "4 steps": ("render.engine.steps=4",),
    "2 steps": ("render.engine.steps=2",),
    "1 step": ("render.engine.steps=1",),
}


class Run(NamedTuple):
    """What one command did."""

    images: int
    wall: float  # s
    processor: float  # s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("captions", type=Path)
    parser.add_argument("--engine", default="pocket:")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name, settings in VARIANTS.items():
            run = render(options.captions, options.engine, options.dtype, settings)
            runs[name].append(run)
            print(f"{name}: {run.images} images, {run.wall:.1f} s, {run.processor:.1f} s processor")
    rows = {
        name: {
            "images_per_s": statistics.median(run.images / run.wall for run in own),
            "images_per_processor_s": statistics.median(run.images / run.processor for run in own),
        }
        for name, own in runs.items()
    }
    first = dict(rows[next(iter(VARIANTS))])
    for name, row in rows.items():
        row.update({f"{key}_ratio": row[key] / value for key, value in first.items()})
        print(name, json.dumps({key: round(value, 2) for key, value in row.items()}), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def render(captions: Path, engine: str, dtype: str, settings: tuple[str, ...]) -> Run:
    """Render into a folder that is then removed."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        command = [sys.executable, "-m", "synclr_cli", "render", str(captions), "-q", "-p", "cifar"]
        command += ["--engine", engine, "--out", str(images)]
        settings = (f"render.engine.dtype={dtype}", f"render.views={VIEWS}", *settings)
        command += [part for setting in settings for part in ("--set", setting)]
        before, started = os.times(), time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.monotonic() - started, os.times()
        parts = artifacts.open_images(images)[0]
        count = sum(pq.ParquetFile(part).metadata.num_rows for part in parts)
    processor = after.children_user + after.children_system
    return Run(count, wall, processor - before.children_user - before.children_system)


if __name__ == "__main__":
    main()
