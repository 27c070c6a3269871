"""A run's folder: what is in it, who it belongs to, and how to go on from there.

out/
    run.json              the header; written first, so that another config is noticed
    metrics.jsonl         one line per `log_steps` updates
    damaged.jsonl         the pictures that did not decode, if any
    checkpoints/step-N/   the newest moments, everything that is needed to go on
    backbones/step-N/     the backbone of then, every `backbone_steps` updates; a run folder each
    config.json           the backbone's, for timm's `local-dir:`
    backbone.safetensors  written last: a run that has it is finished
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from synclr_cli import artifacts
from synclr_cli.artifacts import Header
from synclr_cli.learning import backbone, checkpoint
from synclr_cli.learning.checkpoint import Checkpoint
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.learner import Learner

METRICS_FILE = "metrics.jsonl"


class Folder:
    """One run on disk. The main rank writes, every rank reads."""

    def __init__(self, path: Path, header: Header, rt: Runtime):
        self.path, self.header, self._runtime = path, header, rt
        self._run, self._metrics = path / "run.json", path / METRICS_FILE
        self._damaged, self._checkpoints = path / "damaged.jsonl", path / "checkpoints"
        self._backbones = path / "backbones"

    def is_finished(self, *, overwrite: bool) -> bool:
        """Return whether this very run ended here already; nothing is changed.

        Raises:
            UsageError: the folder belongs to a run of another config or other pictures.
        """
        if overwrite or not self._run.is_file():
            return False
        found = Header.parse(json.dumps(artifacts.read_json(self._run)), self._run)
        artifacts.require_same("train", found, self.header, self.path)
        return (self.path / backbone.WEIGHTS_FILE).is_file()

    def claim(self, *, overwrite: bool) -> None:
        """Make the folder this run's; with `overwrite`, throw away what another left here."""
        self._runtime.barrier()
        if self._runtime.is_main and (overwrite or not self._run.is_file()):
            for file in (self.path / backbone.WEIGHTS_FILE, self._metrics, self._damaged):
                file.unlink(missing_ok=True)
            shutil.rmtree(self._checkpoints, ignore_errors=True)
            shutil.rmtree(self._backbones, ignore_errors=True)
            artifacts.write_json(self._run, json.loads(self.header.json()))
        self._runtime.barrier()

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint; lines logged after it are dropped."""
        path = checkpoint.newest(self._checkpoints)
        saved = checkpoint.load(path) if path else None
        if self._runtime.is_main:
            self._drop_lines_after(saved.step if saved else 0)
        self._runtime.barrier()
        return saved

    def save(self, step: int, learner: Learner, *, keep: int) -> None:
        """Save the state after `step` updates."""
        if self._runtime.is_main:
            header = replace(self.header, schema="checkpoint")
            checkpoint.save(self._checkpoints, step, learner.groups(), header, keep=keep)
        self._runtime.barrier()

    def log(self, record: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl."""
        if self._runtime.is_main:
            artifacts.append_line(self._metrics, record)

    def list_damaged(self, pictures: Sequence[tuple[int, int, str]]) -> None:
        """Append pictures that did not decode to damaged.jsonl."""
        for caption_id, view, what in pictures:
            artifacts.append_line(
                self._damaged, {"caption_id": caption_id, "view": view, "what": what}
            )

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

    def _drop_lines_after(self, step: int) -> None:
        if not self._metrics.is_file():
            return
        kept = []
        for line in self._metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:  # the line that a killed process was writing
                break
        with artifacts.atomic_file(self._metrics) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
