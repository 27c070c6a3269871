"""Checkpoints: everything that training needs to resume, as safetensors and JSON.

    run/checkpoints/step-00001200/
        student.safetensors  teacher.safetensors  ...   one file per named group of tensors
        state.json           step, header, what else the loop keeps, and a digest of each file

A folder is written under a temporary name and renamed, so one that is there is whole; that no disk
changed it since, the digests say. `Writer` copies the tensors and writes while training continues.
"""

from __future__ import annotations

import hashlib
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

STATE_FILE = "state.json"


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
        digests = {}
        for name, tensors in groups.items():
            file = partial / f"{name}.safetensors"
            artifacts.write_tensors(file, tensors, header)
            digests[file.name] = storage.digest(file)  # 0.7 s for 350 MB
        content = {
            "step": step,
            "header": json.loads(header.json()),
            "groups": list(groups),
            "digests": digests,
            "state": dict(state or {}),
        }
        storage.write_json(partial / STATE_FILE, {**content, "digest": _digest(content)})
    for old in paths(folder)[:-keep]:
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
        state: Mapping[str, Any] | None = None,
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
        state = json.loads(json.dumps(state or {}))  # the loop goes on changing its lists
        self._pending = self._thread.submit(
            save, folder, step, copies, header, state=state, keep=keep
        )

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


def paths(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest last."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run, None if it has none."""
    return next(iter(paths(folder)[::-1]), None)


def load(saved: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DataError: a file is missing, damaged, or not the one that was written.
    """
    meta = storage.read_json(saved / STATE_FILE)
    Header.parse(json.dumps(meta.get("header")), saved / STATE_FILE)
    if not isinstance(meta.get("step"), int) or not isinstance(meta.get("groups"), list):
        raise DataError(f"{saved / STATE_FILE} names no step or no groups")
    _require_digest(saved / STATE_FILE, meta)
    groups = {}
    for name in meta["groups"]:
        file = saved / f"{name}.safetensors"
        # A checkpoint from before there were digests has none.
        if file.is_file() and meta.get("digests", {}).get(file.name) not in (
            None,
            storage.digest(file),
        ):
            raise DataError(f"{file} is not what was written there (its digest differs)")
        groups[name] = artifacts.read_tensors(file, "checkpoint")[0]
    return Checkpoint(meta["step"], groups, meta.get("state", {}))


def _require_digest(file: Path, meta: Mapping[str, Any]) -> None:
    content = {key: value for key, value in meta.items() if key != "digest"}
    if "digest" in meta and meta["digest"] != _digest(content):
        raise DataError(f"{file} is not what was written there (its digest differs)")


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


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
