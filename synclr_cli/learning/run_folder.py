"""The folder of a judge that trains: what was done so far, and how to go on from there.

out/
    checkpoints/step-N/   the newest moment; gone once the report is there
    metrics.jsonl         one line per logged step
    model.safetensors     the selected weights
    confusion.png         or overlays.png: what to look at
    report.json           the grade; written last
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from synclr_cli.data import artifacts, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.learning import checkpoint, reports
from synclr_cli.learning.checkpoint import Checkpoint
from synclr_cli.learning.runtime import Runtime

MODEL_FILE, METRICS_FILE = "model.safetensors", "metrics.jsonl"
PICTURES = ("confusion.png", "overlays.png")


class RunFolder:
    """One judge's work on disk. Only the main rank writes; every rank reads."""

    def __init__(self, path: Path, stage: str, header: Header, runtime: Runtime):
        self.path, self.stage, self.header, self.runtime = path, stage, header, runtime
        self.checkpoints = path / "checkpoints"
        self._began, self._before = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Return how long the work took, what was done before an interruption included."""
        return round(self._before + time.monotonic() - self._began, 2)

    def finished(self, *, overwrite: bool) -> dict[str, Any] | None:
        """Return the report if the same command ended here; with `overwrite`, clear the folder.

        Raises:
            UsageError: the folder holds work of other settings, another backbone or other data.
        """
        if overwrite and self.runtime.is_main:
            for file in (reports.FILE, METRICS_FILE, MODEL_FILE, *PICTURES):
                (self.path / file).unlink(missing_ok=True)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.runtime.barrier()
        file = self.path / reports.FILE
        report = reports.stored(file, self.stage, self.header, overwrite=overwrite)
        if report is not None and self.runtime.is_main:
            shutil.rmtree(self.checkpoints, ignore_errors=True)  # killed before it could do so
        return report

    def resume(self) -> Checkpoint | None:
        """Make the folder; return the newest checkpoint of the same command, None if there is none.

        Raises:
            UsageError: the checkpoint is of other settings, another backbone or other data, or the
                folder cannot be made.
        """
        with storage.disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        newest = checkpoint.newest(self.checkpoints)
        if newest is None:
            if self.runtime.is_main:
                (self.path / METRICS_FILE).unlink(missing_ok=True)
            return None
        meta = storage.read_json(newest / "state.json")
        found = Header.parse(json.dumps(meta.get("header")), newest / "state.json")
        artifacts.require_same(self.stage, found, self.header, self.path)
        loaded = checkpoint.load(newest)
        self._before = float(loaded.state.get("seconds", 0.0))
        if self.runtime.is_main:
            self._drop_lines_after(loaded.step)
        return loaded

    def save(
        self, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> None:
        """Save a moment, and drop the one before."""
        if self.runtime.is_main:
            header = replace(self.header, schema="checkpoint")
            kept = {**state, "seconds": self.seconds}
            checkpoint.save(self.checkpoints, step, groups, header, state=kept, keep=1)
        self.runtime.barrier()

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; `record` names its step."""
        if self.runtime.is_main:
            storage.append_line(self.path / METRICS_FILE, record)

    def finish(
        self, report: dict[str, Any], model: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write the selected weights, then the report, and return it; no checkpoint is left."""
        if self.runtime.is_main:
            header = replace(self.header, schema="model", facts=facts)
            artifacts.write_tensors(self.path / MODEL_FILE, model, header)
            reports.write(self.path / reports.FILE, report)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.runtime.barrier()
        return reports.read(self.path / reports.FILE)  # one for all ranks: they differ in seconds

    def unfinished(self, step: int, steps: int) -> dict[str, Any]:
        """Say how far the work got when its minutes were up."""
        return {"task": self.stage, "finished": False, "step": step, "steps": steps}

    def _drop_lines_after(self, step: int) -> None:
        log = self.path / METRICS_FILE
        if not log.is_file():
            return
        kept = []
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:  # the line a killed process was writing
                break
        with storage.atomic_file(log) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
