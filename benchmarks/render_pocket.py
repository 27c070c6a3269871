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

from synclr_cli.data import artifacts

VIEWS = 4
VARIANTS = {
    "flow, 10 steps, guidance 1.5": ("render.engine.steps=10", "render.engine.guidance=1.5"),
    "4 steps": ("render.engine.steps=4",),
    "2 steps": ("render.engine.steps=2",),
    "1 step": ("render.engine.steps=1",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("captions", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    images = VIEWS * artifacts.open_parquet(options.captions, "captions")[0].metadata.num_rows
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name, settings in VARIANTS.items():
            seconds[name].append(render(options.captions, options.dtype, settings))
            print(
                f"{name}: {seconds[name][-1][0]:.1f} s, {seconds[name][-1][1]:.1f} s of processor"
            )
    rows = {}
    for name, runs in seconds.items():
        wall, processor = (images / statistics.median(column) for column in zip(*runs, strict=True))
        rows[name] = {"images_per_s": wall, "images_per_processor_s": processor}
    first = rows[next(iter(VARIANTS))]
    for name, row in rows.items():
        ratios = {f"{key}_ratio": value / first[key] for key, value in row.items()}
        row.update(ratios)
        print(name, json.dumps({key: round(value, 2) for key, value in row.items()}), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def render(captions: Path, dtype: str, settings: tuple[str, ...]) -> tuple[float, float]:
    """Render into a folder that is then removed; return seconds by the clock and of processor."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "synclr_cli", "render", str(captions), "-q", "-p", "cifar"]
        command += ["--out", str(Path(folder) / "images"), "--set", f"render.engine.dtype={dtype}"]
        command += [part for setting in settings for part in ("--set", setting)]
        before, started = os.times(), time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.monotonic() - started, os.times()
    processor = after.children_user + after.children_system
    return wall, processor - before.children_user - before.children_system


if __name__ == "__main__":
    main()
