"""How much memory the captions of a rendering take: it should not grow with their number.

    python benchmarks/render_captions_memory.py [rows ...]

Writes captions files of so many made-up rows, reads each from front to back in parts of 1024, as
`synclr render` does, and prints the peak of resident memory and the rows a second. Each file is
read by a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from synclr_cli.data import artifacts
from synclr_cli.render.captions_reader import CaptionsReader

PART = 1024
PIECE = 100_000  # rows written at once


def write(path: Path, rows: int) -> None:
    """Write a captions/1 file of so many rows, 1000 concepts among them."""

    def pieces():
        for start in range(0, rows, PIECE):
            ids = np.arange(start, min(start + PIECE, rows))
            concepts = [f"concept {i % 1000}" for i in ids]
            columns = {
                "caption_id": ids,
                "caption": [f"a photo of a {c}, as nobody saw it before" for c in concepts],
                "concept": concepts,
                "seed": ids,
                "examples": [[1, 2, 3]] * len(ids),
                "weight": np.ones(len(ids), np.float32),
            }
            same = {k: [k] * len(ids) for k in ("source", "template", "companion", "engine")}
            yield pa.table({**columns, **same})

    header = artifacts.Header(schema="captions", config={})
    artifacts.write_parquet(path, "captions", header, pieces(), rows_per_group=16_384)


def read(path: Path) -> None:
    """Read a file as a rendering does, and print what it took."""
    start = time.perf_counter()
    source = CaptionsReader(path, 254)
    rows = sum(len(source.rows(i, i + PART)) for i in range(0, source.count, PART))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{rows:>10,} captions: {peak:.0f} MiB at the peak, {rows / seconds:,.0f} rows/s")


def main(*counts: str) -> None:
    """Write and read files of growing size."""
    with tempfile.TemporaryDirectory() as folder:
        for rows in map(int, counts or ("100000", "1000000", "4000000")):
            path = Path(folder) / "captions.parquet"
            write(path, rows)
            subprocess.run([sys.executable, __file__, "read", str(path)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        read(Path(sys.argv[2]))
    else:
        main(*sys.argv[1:])
