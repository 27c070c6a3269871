"""Frozen features of labelled images, computed once and found again only if they are the same.

    split --resize, crop, normalise--> images [B, 3, S, S] --frozen ViT--> cls features [n, D]

A features file is named after a digest of everything its numbers depend on (weights, images,
their order and labels, preprocessing, precision), so it cannot be stale: another input, another
name.

Shapes: B images of a batch, n of a split, S pixels, D features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from synclr_cli import console
from synclr_cli.config import LinearProbeConfig
from synclr_cli.data import artifacts
from synclr_cli.data.labelled import LabelledDataset, Split
from synclr_cli.errors import DataError
from synclr_cli.learning import features as learning
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.learning.runtime import Runtime


@dataclass(frozen=True)
class Features:
    """Features and labels of one split."""

    x: Tensor  # [n, D] float32
    y: Tensor  # [n] int64


def make(
    config: LinearProbeConfig,
    backbone: Backbone,
    data: LabelledDataset,
    run: RunFolder,
    rt: Runtime,
) -> None:
    """Write the features of every split, as far as they are not there; all ranks help.

    They lie in the run's own folder, whether or not its report is about to be overwritten: a file
    is named after what its numbers depend on.

    Raises:
        DataError: an image does not decode, or its features are not finite.
    """
    folder = run.path
    header = replace(run.header, schema="features")
    missing = {
        name: path
        for name, split in data.splits.items()
        if not (path := _path(folder, name, backbone, data, split, rt)).is_file()
    }
    rt.barrier()  # every rank has looked before one writes
    model = backbone.model.to(rt.device).eval()
    for name, path in missing.items():
        split = data.splits[name]
        parts = _parts(path, len(split))
        with console.progress(f"features of {name}", len(split), unit="images") as meter:
            for part, rows in parts[rt.rank :: rt.world]:
                if not part.is_file():
                    x = learning.extract(
                        model, backbone, split, rows, rt, meter,
                        batch_size=config.batch_size, workers=config.workers,
                    )  # fmt: skip
                    artifacts.write_tensors(part, {"x": x}, header)
        rt.barrier()
        if rt.is_main:
            x = torch.cat([artifacts.read_tensors(part, "features")[0]["x"] for part, _ in parts])
            whole = {"x": x, "y": torch.from_numpy(split.labels)}
            artifacts.write_tensors(path, whole, replace(header, facts={"split": name}))
            for part in folder.glob(f".{path.stem}.part-*"):
                part.unlink()
    rt.barrier()


def read(
    backbone: Backbone, data: LabelledDataset, folder: Path, rt: Runtime
) -> dict[str, Features]:
    """Return the features of every split that `make` wrote.

    Raises:
        DataError: a file of them is damaged.
    """
    by_split = {}
    for name, split in data.splits.items():
        path = _path(folder, name, backbone, data, split, rt)
        try:
            tensors, _ = artifacts.read_tensors(path, "features")
        except DataError as e:
            raise DataError(
                f"stored features are damaged: {e}",
                do=f"delete {path}: the same command makes it again",
            ) from e
        by_split[name] = Features(tensors["x"], tensors["y"])
    return by_split


def _path(
    folder: Path, name: str, backbone: Backbone, data: LabelledDataset, split: Split, rt: Runtime
) -> Path:
    return folder / f"features-{name}-{_key(backbone, data, split, rt)[:16]}.safetensors"


def _parts(path: Path, n: int) -> list[tuple[Path, range]]:
    """Return the part files of a split and which images each holds."""
    return [
        (path.with_name(f".{path.stem}.part-{i:05d}"), rows)
        for i, rows in enumerate(learning.parts(n))
    ]


def standardise(statistics: Tensor, *others: Tensor) -> list[Tensor]:
    """Return `statistics` and the others z-scored by the mean and spread of `statistics`.

    The spread is the population's. A feature that never varies becomes zero.
    """
    mean, spread = statistics.mean(0), statistics.std(0, correction=0)
    spread[spread == 0] = 1
    return [(x - mean) / spread for x in (statistics, *others)]


def _key(backbone: Backbone, data: LabelledDataset, split: Split, rt: Runtime) -> str:
    depends_on: Mapping[str, object] = {
        "backbone": backbone.digest,
        "data": data.digest,
        "rows": hashlib.sha256(split.rows.tobytes()).hexdigest(),
        "labels": hashlib.sha256(split.labels.tobytes()).hexdigest(),
        "view": vars(learning.transform(backbone)),
        "precision": str(rt.amp_dtype or torch.float32),
    }
    return hashlib.sha256(json.dumps(depends_on, default=list).encode()).hexdigest()
