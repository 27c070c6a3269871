"""What an images folder holds, and sets made elsewhere, for tests that compare or import them."""

from __future__ import annotations

import io
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from synclr_cli.data import image_facts
from synclr_cli.data.artifacts import Header, arrow_schema
from synclr_cli.data.manifest import open_dataset
from synclr_cli.data.shards import ShardedDataset


def rows_of(folder: Path) -> list[dict]:
    parts = open_dataset(folder, "images").paths()
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())  # here or elsewhere
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def facts(folder: Path) -> dict:
    return dict(open_dataset(folder, "images").facts)


def replace_part(folder: Path, index: int, table: pa.Table) -> None:
    """Write other rows in the place of a part's, as if they had been made so."""
    opened = open_dataset(folder, "images")
    dataset = ShardedDataset(folder, "images", opened.header)
    with dataset.claim():
        part = dataset.facts(index)
        dataset.write(index, table, rows_per_group=16, facts=part.facts)
        dataset.finish(opened.parts.num_rows, opened.facts)


def write_images(folder: Path, captions: int = 3, views: int = 2, size: int = 12) -> Path:
    """Make a finished images folder, two captions a part."""
    header = Header("images", {"views": views}, engine="procedural:")
    dataset = ShardedDataset(folder, "images", header)
    total = -(-captions // 2)
    with dataset.claim():
        for index in range(total):
            ids = [c for c in range(2 * index, min(2 * index + 2, captions)) for _ in range(views)]
            rows = [
                {
                    "caption_id": c, "view": i % views, "caption": f"a photo of fox {c}",
                    "concept": f"fox {c % 2}", "width": size + 4, "height": size, "seed": i,
                    "image": {"bytes": image(100 * c + i % views, size=size), "path": None},
                    "mask": None, "score": None,
                }
                for i, c in enumerate(ids)
            ]  # fmt: skip
            table = pa.Table.from_pylist(rows, schema=arrow_schema("images").remove_metadata())
            told = image_facts.of_part(table, [], [])
            dataset.write(index, table, rows_per_group=4, facts=told)
        whole = partial(image_facts.of_whole, source="captions", views=views, classes=[])
        dataset.finish(total, whole)
    return folder


def rejected(folder: Path) -> list[dict]:
    return list(image_facts.read_rejected(folder))


def image(i: int, kind: str = "PNG", size: int = 12) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 255, (size, size + 4, 3), np.uint8)
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


def reference_set(root: Path, captions: int = 5, views: int = 3) -> Path:
    lines = []
    for c in range(captions):
        lines.append(f'shard/{c}.png,"a fox, number {c}"')
        for v in range(views):
            path = root / f"seed{v}" / "shard" / f"{c}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(10 * c + v))
    (root / "all.csv").write_text("image,caption\n" + "\n".join(lines) + "\n")
    return root / "all.csv"


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
