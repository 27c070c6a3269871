"""Checkpoints: everything a training run needs to go on, as safetensors and JSON.

    run/checkpoints/step-00001200/
        student.safetensors  teacher.safetensors  ...   one file per named group of tensors
        state.json                                      step, header and whatever the loop keeps

A folder is written under a temporary name and renamed, so one that is there is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synclr_cli import artifacts
from synclr_cli.artifacts import Header
from synclr_cli.errors import DataError


@dataclass(frozen=True)
class Checkpoint:
    """A saved moment of a run."""

    step: int  # updates done
    groups: Mapping[str, Mapping[str, Tensor]]  # "student" -> parameter name -> tensor
    state: Mapping[str, Any]  # what else the loop keeps; JSON values


def save(
    folder: Path,
    step: int,
    groups: Mapping[str, Mapping[str, Tensor]],
    header: Header,
    *,
    state: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write `folder/step-N`, then drop all but the newest `keep`."""
    target = folder / f"step-{step:08d}"
    with artifacts.atomic_folder(target) as partial:
        for name, tensors in groups.items():
            artifacts.write_tensors(partial / f"{name}.safetensors", tensors, header)
        artifacts.write_json(
            partial / "state.json",
            {"step": step, "header": json.loads(header.json()), "state": dict(state or {})},
        )
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run, None if it has none."""
    found = _steps(folder)
    return found[-1] if found else None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DataError: a file is missing or damaged.
    """
    meta = artifacts.read_json(path / "state.json")
    Header.parse(json.dumps(meta.get("header")), path / "state.json")
    groups = {
        file.stem: artifacts.read_tensors(file, "checkpoint")[0]
        for file in sorted(path.glob("*.safetensors"))
    }
    if not isinstance(meta.get("step"), int):
        raise DataError(f"{path / 'state.json'} names no step")
    return Checkpoint(meta["step"], groups, meta.get("state", {}))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors: `parameter index.moment`."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; groups and their settings stay the optimiser's."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(
        {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())
