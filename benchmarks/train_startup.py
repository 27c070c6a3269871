"""What `synclr train` and `synclr render` take to start, by the size of the set.

    python benchmarks/train_startup.py [--keep FOLDER] [parts ...]

Writes a finished images folder of so many parts of 256 captions with 4 images each, one part in ten
with a gap in its ids or a caption with fewer images, and the captions it was made of. Every part is
a whole Parquet file, but there are few of them, each under the names of many parts (hard links).
Then, each in a process of its own: `train` until its first batch of 64 captions is decoded and cut
(open, index, checks, first batch), once for each order of an epoch; and `render` of what is all
there. A folder that is kept is not written again. Linux (VmRSS, VmHWM of /proc).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from synclr_cli import config as configs
from synclr_cli.config import RenderConfig, TrainConfig
from synclr_cli.data import artifacts, manifest
from synclr_cli.data.artifacts import Header
from synclr_cli.data.manifest import PartFacts

CAPTIONS, VIEWS = 256, 4  # of a part; of a caption
CAPTIONS_IN_FILE = 20_000  # of a part of the captions' folder
LINKS = 50_000  # names of a file; ext4 allows 65,000
BATCH = 64  # captions
CONFIG = RenderConfig(views=VIEWS, captions_per_part=CAPTIONS)


def write(folder: Path, parts: int) -> None:
    """Write captions and images of so many parts."""
    captions, images = folder / "captions", folder / "images"
    count = -(-parts * CAPTIONS // CAPTIONS_IN_FILE)
    _write_captions(captions, parts * CAPTIONS, count)
    images.mkdir(parents=True)
    parent = artifacts.parent(captions, *_opened(captions))
    header = Header(
        "images", configs.recipe(CONFIG), engine=CONFIG.engine.name, seed=CONFIG.seed,
        parents=(parent,),
    )  # fmt: skip
    known = list(_write_images(images, parts, header, f"{VIEWS} {parent['digest']}"))
    _write_manifest(images, header, known, {"views": VIEWS, "smallest_side": 32})


def _opened(folder: Path) -> tuple[Header, str]:
    opened = manifest.read_manifest(folder, "captions")
    return opened.header, opened.digest


def _write_captions(folder: Path, total: int, count: int) -> None:
    """Write the list of `count` parts of captions; the parts are empty files."""
    folder.mkdir(parents=True)
    known = []
    for number in range(count):
        first = number * CAPTIONS_IN_FILE
        rows = min(CAPTIONS_IN_FILE, total - first)
        known.append(
            PartFacts(
                name=manifest.part_name(number),
                rows=rows,
                captions=rows,
                first=first,
                last=first + rows - 1,
                fewest=1,
                layout="",
                bytes=0,
                digest=f"sha256:{number:064x}",
            )
        )
        (folder / manifest.part_name(number)).touch()
    _write_manifest(folder, Header("captions", {}), known, {})


def _write_images(folder: Path, parts: int, header: Header, mark: str) -> Iterator[PartFacts]:
    """Write a part for every LINKS names, link the other names to it, and yield all facts."""
    ids = np.arange(CAPTIONS)
    with_gap = np.delete(ids, 100)
    fewer = np.full(CAPTIONS - 1, VIEWS) - (np.arange(CAPTIONS - 1) % 50 == 0)
    layouts = {False: (ids, np.full(CAPTIONS, VIEWS)), True: (with_gap, fewer)}
    kinds = {}
    for number in range(parts):
        irregular = number % 10 == 0
        path = folder / manifest.part_name(number)
        if number % LINKS < 2:
            kinds[irregular] = path, _write_part(path, *layouts[irregular], header, mark)
        else:
            os.link(kinds[irregular][0], path)
        part = kinds[irregular][1]
        first = number * CAPTIONS
        yield replace(
            part, name=path.name, first=first, last=first + CAPTIONS - 1,
            digest=f"sha256:{number:064x}",
        )  # fmt: skip


def _write_part(
    path: Path, ids: np.ndarray, views: np.ndarray, header: Header, mark: str
) -> PartFacts:
    draw = np.random.default_rng(0)
    records = []
    for i, count in zip(ids.tolist(), views.tolist(), strict=True):
        for view in range(count):
            data = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(data, "JPEG")
            records.append(
                {"caption_id": i, "view": view, "caption": f"caption {i}", "concept": "thing",
                 "image": {"bytes": data.getvalue()}, "width": 32, "height": 32, "seed": 0}
            )  # fmt: skip
    table = pa.Table.from_pylist(records, schema=artifacts.arrow_schema("images"))
    artifacts.write_tables(path, "images", header, [table], rows_per_group=16 * VIEWS)
    facts = {"set": mark, "mark": "0" * 16, "smallest_side": 32, "masks": False,
             "rejected": {"duplicate": 3}, "set_aside": 0}  # fmt: skip
    return manifest.measure(path.name, table, path, facts)


def _write_manifest(folder: Path, header: Header, known: list[PartFacts], facts: dict) -> None:
    listed, record = manifest.written(header, known, facts)
    (folder / manifest.PARTS).write_bytes(listed)
    (folder / manifest.MANIFEST).write_text(json.dumps(record))


def memory(name: str) -> float:
    """Return a line of this process's /proc status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


class Clock:
    """Seconds since it was made: on the clock, and of this process's CPU."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return f"{wall:.2f} s ({cpu:.2f} s CPU)"


def start_train(folder: Path, **changes: str) -> None:
    """Open the set as `synclr train` does, make its first batch, and print what that took."""
    from synclr_cli.train.batches import Batches
    from synclr_cli.train.image_index import ImageIndex, open_images, require_trainable

    config = TrainConfig(captions_per_batch=BATCH, image_size=32, local_size=16, workers=0, views=2,
                         **changes)  # fmt: skip
    before, clock = memory("VmRSS"), Clock()
    opened = open_images(folder / "images")
    index = ImageIndex(opened)
    require_trainable(index, config, folder, 1)
    del opened
    indexed = str(clock)
    batches = Batches(index, config, patches=4)
    batches.make(0)
    first = str(clock)
    print(
        f"train {' '.join(changes.values()) or 'as is':6} {len(index):>12,} captions: index"
        f" {indexed}, first batch {first}; memory"
        f" {before:.0f} MiB before, {memory('VmHWM') - before:+.0f} at the peak,"
        f" {memory('VmRSS') - before:+.0f} after",
        flush=True,
    )


def start_render(folder: Path) -> None:
    """Render what is all there, and print what that took."""
    from synclr_cli.render.run import run

    before, clock = memory("VmRSS"), Clock()
    run(CONFIG, folder / "captions", folder / "images")
    print(
        f"render, all there: {clock}; memory {before:.0f} MiB before,"
        f" {memory('VmHWM') - before:+.0f} at the peak",
        flush=True,
    )


def main() -> None:
    """Measure sets of growing size."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("parts", nargs="*", type=int, default=[40, 400, 4000, 40_000, 600_000])
    options.add_argument("--keep", type=Path, help="folder to keep what is written in")
    options.add_argument("--start", nargs="*", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.start:
        kind, folder, *shuffle = given.start
        if kind == "render":
            start_render(Path(folder))
        else:
            start_train(Path(folder), **({"shuffle": shuffle[0]} if shuffle else {}))
        return
    for parts in given.parts:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(given.keep or temporary, str(parts))
            if not (folder / "images" / manifest.MANIFEST).is_file():
                write(folder, parts)
            print(f"{parts:,} parts", flush=True)
            for kind in (("train", "full"), ("train", "blocks"), ("render",)):
                command = [sys.executable, __file__, "--start", kind[0], str(folder), *kind[1:]]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
