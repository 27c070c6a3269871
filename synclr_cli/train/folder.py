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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from synclr_cli.data import artifacts, exports, locks, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import backbone, checkpoint
from synclr_cli.learning.checkpoint import Checkpoint
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.learner import Learner
from synclr_cli.train.report import METRICS_FILE

if TYPE_CHECKING:
    from filelock import BaseFileLock

# What else synclr makes a folder of, known by a file that a run has not; not even overwritten.
OTHERS = {
    "manifest.json": "pictures",
    "report.json": "a judge's report",
    exports.EXPORT_FILE: "an exported backbone",
}


class Folder:
    """One run on disk. The main rank writes, every rank reads."""

    def __init__(self, path: Path, header: Header, rt: Runtime):
        self.path, self.header, self._runtime = path, header, rt
        self._skips, self._writer = 0, checkpoint.Writer()
        self._run, self._metrics = path / "run.json", path / METRICS_FILE
        self.damaged, self._checkpoints = path / "damaged.jsonl", path / "checkpoints"
        self._skipped, self._backbones = path / "skipped.jsonl", path / "backbones"
        self._lock: BaseFileLock | None = None

    def is_finished(self, *, overwrite: bool) -> bool:
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
        if overwrite or not self._run.is_file():
            return False
        found = Header.parse(json.dumps(storage.read_json(self._run)), self._run)
        artifacts.require_same("train", found, self.header, self.path)
        return (self.path / backbone.WEIGHTS_FILE).is_file()

    def claim(self, *, overwrite: bool) -> None:
        """Make the folder this run's; with `overwrite`, throw away what another left here.

        Raises:
            UsageError: another process trains here.
        """
        taken: UsageError | None = None
        if self._runtime.is_main:
            try:
                self._lock = locks.lock(
                    self.path / ".lock", do="wait for it, or choose another --out"
                )
            except UsageError as e:
                taken = e
        if self._runtime.any(taken is not None):
            raise taken or UsageError(f"{self.path} is {locks.IN_USE}")
        if self._runtime.is_main:
            for folder in (self.path, self._checkpoints, self._backbones):
                storage.remove_partials(folder)
        if self._runtime.is_main and (overwrite or not self._run.is_file()):
            weights = self.path / backbone.WEIGHTS_FILE
            with storage.disk_errors(self.path):
                for file in (weights, self._metrics, self.damaged, self._skipped):
                    file.unlink(missing_ok=True)
            shutil.rmtree(self._checkpoints, ignore_errors=True)
            shutil.rmtree(self._backbones, ignore_errors=True)
            storage.write_json(self._run, json.loads(self.header.json()))
        self._runtime.barrier()

    def newest(self) -> Checkpoint | None:
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
        if self._runtime.is_main:
            done = saved.step if saved else 0
            _drop_lines(self._metrics, after=done)
            _drop_lines(self._skipped, after=done - 1)  # a line of steps that start at 0
        self._runtime.barrier()
        self._skips = len(storage.read_lines(self._skipped))
        return saved

    def save(self, step: int, learner: Learner, *, keep: int) -> None:
        """Save the state after `step` updates, in the background; `saving` waits for it."""
        groups = learner.groups()
        # One that is there is this very state: the run went on from it, and is not replaced.
        if self._runtime.is_main and not checkpoint.path(self._checkpoints, step).is_dir():
            header = replace(self.header, schema="checkpoint")
            self._writer.save(self._checkpoints, step, groups, header, keep=keep)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Have everything saved inside on disk at the end."""
        try:
            yield
        finally:
            self._writer.settle()
        self._runtime.barrier()

    def log(self, record: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl."""
        if self._runtime.is_main:
            storage.append_line(self._metrics, record)

    def skip(self, step: int, lr: float, caption_ids: Sequence[int]) -> None:
        """Append a step whose update was skipped to skipped.jsonl."""
        self._skips += 1
        if self._runtime.is_main:
            record = {"step": step, "lr": lr, "caption_ids": list(caption_ids)}
            storage.append_line(self._skipped, record)

    def skips(self) -> int:
        """Return how many updates of this run were skipped, before a resume or since."""
        return self._skips

    def list_damaged(self, pictures: Sequence[tuple[int, int, str]]) -> None:
        """Append pictures that did not decode to damaged.jsonl, each once over all resumes."""
        if not pictures:
            return
        known = {(line["caption_id"], line["view"]) for line in storage.read_lines(self.damaged)}
        for caption_id, view, what in pictures:
            if (caption_id, view) not in known:
                known.add((caption_id, view))
                record = {"caption_id": caption_id, "view": view, "what": what}
                storage.append_line(self.damaged, record)

    def keep_backbone(self, learner: Learner, facts: Mapping[str, object]) -> None:
        """Write the teacher's ViT of now beside the run's own."""
        self._save_backbone(self._backbones / f"step-{facts['steps']:08d}", learner, facts)

    def finish(self, learner: Learner, facts: Mapping[str, object]) -> None:
        """Write the teacher's ViT as the run's backbone."""
        self._save_backbone(self.path, learner, facts)

    def _save_backbone(self, where: Path, learner: Learner, facts: Mapping[str, object]) -> None:
        config = learner.config
        if self._runtime.is_main:
            backbone.save(
                where,
                learner.teacher.vit,
                replace(self.header, facts=facts),
                arch=config.arch,
                image_size=config.image_size,
                patch_size=config.patch_size,
                depth=config.depth,
            )
        self._runtime.barrier()


def _drop_lines(file: Path, *, after: int) -> None:
    """Drop the lines of later steps, which are about to be made again."""
    if file.is_file():
        kept = [line for line in storage.read_lines(file) if line["step"] <= after]
        with storage.atomic_file(file) as partial:
            partial.write_text("".join(f"{json.dumps(k)}\n" for k in kept), encoding="utf-8")
