"""What training takes to start, by the size of the set: seconds and memory of its index.

    python benchmarks/train_startup.py [parts ...]

Writes the manifest of so many made-up parts of 256 captions with 4 images each, one part in ten
with a gap in its ids or a caption with fewer images. Then, in a process of its own: reads the
manifest, builds the index, and locates the captions of 20 batches of 4096. Parts are empty files:
listing the folder costs what it does, none is opened. Linux (VmRSS, VmHWM of /proc).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from synclr_cli.data import manifest, part_layout
from synclr_cli.data.artifacts import Header
from synclr_cli.data.manifest import PartFacts

CAPTIONS, VIEWS = 256, 4


def write(folder: Path, parts: int) -> None:
    """Write a manifest of so many parts, and the parts as empty files."""
    facts = {"mark": "0" * 16, "set": "4 sha256:" + "0" * 64, "smallest_side": 256, "masks": False,
             "rejected": {"duplicate": 3}, "set_aside": 0}  # fmt: skip

    def part(number: int) -> PartFacts:
        ids = np.arange(CAPTIONS) + number * CAPTIONS
        views = np.full(CAPTIONS, VIEWS)
        if number % 10 == 0:
            ids = np.delete(ids, 1 + number % (CAPTIONS - 2))
            views = views[:-1] - (np.arange(CAPTIONS - 1) % 50 == 0)
        return PartFacts(
            name=manifest.part_name(number), rows=int(views.sum()), captions=len(ids),
            first=int(ids[0]), last=int(ids[-1]), fewest=int(views.min()),
            layout=part_layout.encode(ids, views), bytes=0, digest=f"sha256:{number:064x}",
            facts=facts,
        )  # fmt: skip

    whole = {"views": VIEWS, "smallest_side": 256}
    listed, record = manifest.written(
        Header("images", {"views": VIEWS}), [part(n) for n in range(parts)], whole
    )
    (folder / manifest.PARTS).write_bytes(listed)
    (folder / manifest.MANIFEST).write_text(json.dumps(record))
    for number in range(parts):
        (folder / manifest.part_name(number)).touch()


def start(folder: Path) -> None:
    """Open the set as `synclr train` does, and print what that took."""
    from synclr_cli.train.image_index import ImageIndex

    def memory(name: str) -> float:  # MiB
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

    before, began = memory("VmRSS"), time.perf_counter()
    index = ImageIndex(manifest.open_dataset(folder, "images"))
    opened = time.perf_counter() - began
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for _ in range(20):
        index.locate(rng.integers(0, len(index), 4096))
    located = (time.perf_counter() - began) / 20
    size = (folder / manifest.PARTS).stat().st_size / 2**20
    print(
        f"{len(index):>12,} captions: list of parts {size:.1f} MiB, opened in {opened:.2f} s;"
        f" memory {before:.0f} MiB before, {memory('VmHWM'):.0f} at the peak, {memory('VmRSS'):.0f}"
        f" after; {1000 * located:.1f} ms to locate a batch"
    )


def main(*counts: str) -> None:
    """Measure sets of growing size."""
    for parts in map(int, counts or ("1000", "10000", "100000", "600000")):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), parts)
            subprocess.run([sys.executable, __file__, "start", folder], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["start"]:
        start(Path(sys.argv[2]))
    else:
        main(*sys.argv[1:])
