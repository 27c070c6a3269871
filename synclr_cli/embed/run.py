"""`synclr embed`: a row of numbers for each image, for search, clustering and other programs.

    backbone + images --cls features--> features.parquet: path, row, split, label, embedding [D]
                                        features.npy: [n, D] float32, and features.json beside it

They are the features that `linear-probe` classifies. Parts of them lie in a hidden folder beside
`out` until all are there, so that what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from synclr_cli import console
from synclr_cli.data import artifacts, image_sets, locks, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.data.image_sets import ImageSet
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import features, runtime
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.runtime import Runtime

SUFFIXES = (".parquet", ".npy")
ROWS_PER_GROUP = 4096


def run(
    backbone: str,
    data: str,
    out: Path,
    *,
    image_size: int = 0,
    batch_size: int = 128,
    workers: int = -1,
    precision: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write the embeddings of all images of `data` and return `out`.

    Args:
        image_size: pixels that the backbone sees; 0: its own.
        workers: loader processes of a rank; -1: by its cores.
        seed: of the weights of random:ARCH.

    Raises:
        UsageError: `out` has another ending, or holds the embeddings of something else.
        DataError: the backbone or an image cannot be read.
    """
    if out.suffix not in SUFFIXES:
        raise UsageError("--out", got=out.name, expected=" or ".join(f"*{s}" for s in SUFFIXES))
    images = image_sets.open_images(data)
    opened = features.open_any(backbone, image_size=image_size, seed=seed)
    with runtime.started(precision) as rt:
        header = _header(images, opened, rt, seed)
        done = out.is_file() and not overwrite
        rt.barrier()  # every rank has looked before one writes
        if done:
            _require_same(out, header)
            return out
        parts = out.with_name(f".{out.name}.parts")
        if not rt.is_main:
            rt.barrier()
            _make_parts(parts, images, opened, header, rt, batch_size, workers)
            rt.barrier()
            return out
        with locks.locked(parts / ".lock"):
            rt.barrier()
            _make_parts(parts, images, opened, header, rt, batch_size, workers)
            rt.barrier()
            x = torch.cat([_read(path) for path, _ in _parts(parts, images, header)])  # [n, D]
            _write(out, images, x, header)
            for path in parts.glob("*.safetensors"):
                path.unlink()
        with suppress(OSError):  # gone with its lock, or another process begins there
            parts.rmdir()
    return out


def _header(images: ImageSet, opened: Backbone, rt: Runtime, seed: int) -> Header:
    """Describe the embeddings: all that their numbers depend on."""
    config = {
        "image_size": opened.image_size,
        "precision": str(rt.amp_dtype or torch.float32).removeprefix("torch."),
    }
    parents = (
        artifacts.parent(Path(opened.name), opened.header, opened.digest),
        artifacts.parent(Path(images.name), images.header, images.digest()),
    )
    return Header("embeddings", config, seed=seed, parents=parents)


def _require_same(out: Path, header: Header) -> None:
    """Refuse a file of other embeddings, or of something else.

    Raises:
        UsageError: it is one; says what differs.
    """
    known = _known(out)
    if known is None or known.schema != header.schema:
        raise UsageError(f"{out} holds no embeddings", do="choose another --out")
    digests = [[p["digest"] for p in one.parents] for one in (known, header)]
    inputs = ("backbone", "images")
    pairs = zip(inputs, *digests, strict=True)
    differing = [name for name, old, new in pairs if old != new]
    differing += [key for key, value in header.config.items() if known.config.get(key) != value]
    if differing:
        raise UsageError(
            f"{out} holds other embeddings ({', '.join(differing)} differ)",
            do="add --overwrite, or choose another --out",
        )


def _known(out: Path) -> Header | None:
    """Return the header of an earlier result, None if it has none."""
    try:
        if out.suffix == ".parquet":
            return artifacts.open_any_parquet(out)[1]
        beside = out.with_suffix(".json")
        return Header.parse(json.dumps(storage.read_json(beside)["header"]), beside)
    except (DataError, KeyError):
        return None


def _parts(folder: Path, images: ImageSet, header: Header) -> list[tuple[Path, range]]:
    """Return the file of each part, named after what its numbers depend on, and its images."""
    identity = [header.config, [p["digest"] for p in header.parents], len(images.source)]
    key = sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return [
        (folder / f"{key}-{i:05d}.safetensors", rows)
        for i, rows in enumerate(features.parts(len(images.source)))
    ]


def _make_parts(
    folder: Path,
    images: ImageSet,
    opened: Backbone,
    header: Header,
    rt: Runtime,
    batch_size: int,
    workers: int,
) -> None:
    """Write this rank's parts that are not there yet."""
    model = opened.model.to(rt.device).eval()
    with console.progress("embed", len(images.source), unit="images") as meter:
        for path, rows in _parts(folder, images, header)[rt.rank :: rt.world]:
            if path.is_file():
                meter.advance(len(rows))
                continue
            x = features.extract(
                model, opened, images.source, rows, rt, meter,
                batch_size=batch_size, workers=workers,
            )  # fmt: skip
            artifacts.write_tensors(path, {"x": x}, header)


def _read(path: Path) -> Tensor:
    tensors, _ = artifacts.read_tensors(path, "embeddings")
    x: Tensor = tensors["x"]
    return x


def _write(out: Path, images: ImageSet, x: Tensor, header: Header) -> None:
    """Write the result, the array last."""
    array = x.numpy()
    if out.suffix == ".npy":
        told = {"header": asdict(header), "rows": images.rows.to_pylist()}
        storage.write_json(out.with_suffix(".json"), told)
        with storage.atomic_file(out) as partial, open(partial, "wb") as file:
            np.save(file, array, allow_pickle=False)
        return
    flat = pa.array(array.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, x.shape[1])  # [n] of [D]
    table = images.rows.append_column("embedding", column)
    with storage.atomic_file(out) as partial:
        pq.write_table(
            table.replace_schema_metadata({artifacts.HEADER_KEY: header.json()}),
            partial, compression="zstd", row_group_size=ROWS_PER_GROUP, write_page_checksum=True,
        )  # fmt: skip
