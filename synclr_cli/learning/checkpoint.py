"""Checkpoints: everything a training run needs to go on, as safetensors and JSON.

    run/checkpoints/step-00001200/
        student.safetensors  teacher.safetensors  ...   one file per named group of tensors
        state.json                                      step, header and whatever the loop keeps

A folder is written under a temporary name and renamed, so one that is there is whole. `Writer`
copies the tensors and writes while the training goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synclr_cli.data import artifacts, storage
from synclr_cli.data.artifacts import Header
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
    target = path(folder, step)
    with storage.atomic_folder(target) as partial:
        for name, tensors in groups.items():
            artifacts.write_tensors(partial / f"{name}.safetensors", tensors, header)
        storage.write_json(
            partial / "state.json",
            {
                "step": step,
                "header": json.loads(header.json()),
                "groups": list(groups),
                "state": dict(state or {}),
            },
        )
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


class Writer:
    """Saves checkpoints in the background, one at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def save(
        self,
        folder: Path,
        step: int,
        groups: Mapping[str, Mapping[str, Tensor]],
        header: Header,
        *,
        keep: int = 2,
    ) -> None:
        """Copy the tensors to memory of the host and return; errors come with the next call.

        Raises:
            SynclrError: the checkpoint before could not be written.
        """
        self.settle()
        copies = {
            name: {key: t.detach().to("cpu", copy=True) for key, t in tensors.items()}
            for name, tensors in groups.items()
        }
        self._pending = self._thread.submit(save, folder, step, copies, header, keep=keep)

    def settle(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            SynclrError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run, None if it has none."""
    found = _steps(folder)
    return found[-1] if found else None


def load(saved: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DataError: a file is missing or damaged.
    """
    meta = storage.read_json(saved / "state.json")
    Header.parse(json.dumps(meta.get("header")), saved / "state.json")
    groups = {
        file.stem: artifacts.read_tensors(file, "checkpoint")[0]
        for file in sorted(saved.glob("*.safetensors"))
    }
    missing = sorted({*meta.get("groups", [])} - {*groups})
    if missing:
        raise DataError(f"{saved} lacks {', '.join(f'{name}.safetensors' for name in missing)}")
    if not isinstance(meta.get("step"), int):
        raise DataError(f"{saved / 'state.json'} names no step")
    return Checkpoint(meta["step"], groups, meta.get("state", {}))


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors: `parameter index.moment`.

    Args:
        state: its state dict, if it had to be collected from elsewhere.
    """
    state = optimizer.state_dict() if state is None else state
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, moments in state["state"].items()
        for name, value in moments.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; groups and their settings stay the optimiser's."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value
    # As state_dict() numbers them, which an optimiser in shards gives to the main rank only.
    groups, start = [], 0
    for group in optimizer.param_groups:
        end = start + len(group["params"])
        groups.append({**group, "params": list(range(start, end))})
        start = end
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())
