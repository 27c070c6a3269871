"""A run's folder: what is in it, who it belongs to, and how to go on from there.

out/
    run.json              the header; written first, so that another config is noticed
    metrics.jsonl         one line per `log_steps` updates
    damaged.jsonl         the pictures that did not decode, if any
    skipped.jsonl         the steps whose loss was not finite, if any were skipped
    checkpoints/step-N/   the newest moments, everything that is needed to go on
    backbones/step-N/     the backbone of then, every `backbone_steps` updates; a run folder each
    config.json           the backbone's, for timm's `local-dir:`
    backbone.safetensors  written last: a run that has it is finished
    .lock                 held by the process that trains here
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from synclr_cli.data import artifacts, exports, locks, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import backbone, checkpoint
from synclr_cli.learning.checkpoint import Checkpoint
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.report import METRICS_FILE

if TYPE_CHECKING:
    from filelock import BaseFileLock

# What else synclr makes a folder of, known by a file that a run has not; not even overwritten.
OTHERS = {
    "manifest.json": "pictures",
    "_manifest.json": "captions or images",
    "report.json": "a judge's report",
    exports.EXPORT_FILE: "an exported backbone",
}


class Folder:
    """One run on disk. The main rank writes, every rank reads."""

    def __init__(
        self,
        path: Path,
        kind: str,
        header: Header,
        runtime: Runtime,
        *,
        overwrite: bool = False,
        keep: int = 2,
    ):
        """Touch nothing yet; `keep` checkpoints are kept."""
        self.path, self.work, self.kind, self.header = path, path, kind, header
        self.runtime, self.overwrite, self.keep = runtime, overwrite, keep
        self._writer = checkpoint.Writer()
        self._run, self._metrics = path / "run.json", path / METRICS_FILE
        self._damaged, self._checkpoints = path / "damaged.jsonl", path / "checkpoints"
        self._skipped, self._backbones = path / "skipped.jsonl", path / "backbones"
        self._lock: BaseFileLock | None = None

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._writer.settle()
        finally:
            if self._lock is not None:
                self._lock.release()

    def finished(self) -> bool:
        """Return whether this very run ended here already; nothing is changed.

        Raises:
            UsageError: the folder belongs to a run of another config or other pictures, or to
                something else.
        """
        for name, what in OTHERS.items():
            if (self.path / name).is_file():
                raise UsageError(f"{self.path} holds {what}", do="choose another --out")
        written = (
            backbone.WEIGHTS_FILE,
            backbone.CONFIG_FILE,
            METRICS_FILE,
            "checkpoints",
            "backbones",
        )
        theirs = [name for name in written if (self.path / name).exists()]
        if theirs and not self._run.is_file():  # a run has run.json before it has these
            raise UsageError(
                f"{self.path} holds {', '.join(theirs)} but no run.json, so it is no run",
                do="choose another --out",
            )
        if self.overwrite or not self._run.is_file():
            return False
        found = Header.parse(json.dumps(storage.read_json(self._run)), self._run)
        artifacts.require_same("train", found, self.header, self.path)
        return (self.path / backbone.WEIGHTS_FILE).is_file()

    def claim(self) -> None:
        """Make the folder this run's; with `overwrite`, throw away what another left here.

        Raises:
            UsageError: another process trains here.
        """
        taken: UsageError | None = None
        if self.runtime.is_main:
            try:
                self._lock = locks.lock(
                    self.path / ".lock", do="wait for it, or choose another --out"
                )
            except UsageError as e:
                taken = e
        if self.runtime.any(taken is not None):
            raise taken or UsageError(f"{self.path} is {locks.IN_USE}")
        if self.runtime.is_main:
            for folder in (self.path, self._checkpoints, self._backbones):
                storage.remove_partials(folder)
        if self.runtime.is_main and (self.overwrite or not self._run.is_file()):
            weights = self.path / backbone.WEIGHTS_FILE
            with storage.disk_errors(self.path):
                for file in (weights, self._metrics, self._damaged, self._skipped):
                    file.unlink(missing_ok=True)
            shutil.rmtree(self._checkpoints, ignore_errors=True)
            shutil.rmtree(self._backbones, ignore_errors=True)
            storage.write_json(self._run, json.loads(self.header.json()))
        self.runtime.barrier()

    def resume(self) -> Checkpoint | None:
        """Return the newest checkpoint; lines logged after it are dropped.

        Raises:
            DataError: it cannot be read.
        """
        path = checkpoint.newest(self._checkpoints)
        try:
            saved = checkpoint.load(path) if path else None
        except DataError as e:
            raise DataError(
                f"the newest checkpoint is damaged: {e}",
                do=f"delete {path}: the same command continues from the one before, if any",
            ) from e
        if self.runtime.is_main:
            done = saved.step if saved else 0
            _drop_lines(self._metrics, after=done)
            _drop_lines(self._skipped, after=done - 1)  # a line of steps that start at 0
        self.runtime.barrier()
        return saved

    def save(self, step: int, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Save the state after `step` updates, in the background."""
        # One that is there is this very state: the run went on from it, and is not replaced.
        if self.runtime.is_main and not checkpoint.path(self._checkpoints, step).is_dir():
            header = replace(self.header, schema="checkpoint")
            self._writer.save(self._checkpoints, step, groups, header, keep=self.keep)

    def log(self, record: Mapping[str, object], file: str = METRICS_FILE) -> None:
        """Append one line to a .jsonl file."""
        if self.runtime.is_main:
            storage.append_line(self.path / file, record)

    def lines(self, file: str = METRICS_FILE) -> list[dict[str, Any]]:
        """Return the lines of a .jsonl file."""
        return storage.read_lines(self.path / file)

    def finish(self, write: Callable[[Path], object]) -> None:
        """Have `write(folder)` write the result."""
        self._writer.settle()
        self.runtime.barrier()
        if self.runtime.is_main:
            write(self.path)
        self.runtime.barrier()


def _drop_lines(file: Path, *, after: int) -> None:
    """Drop the lines of later steps, which are about to be made again."""
    if file.is_file():
        kept = [line for line in storage.read_lines(file) if line["step"] <= after]
        with storage.atomic_file(file) as partial:
            partial.write_text("".join(f"{json.dumps(k)}\n" for k in kept), encoding="utf-8")
