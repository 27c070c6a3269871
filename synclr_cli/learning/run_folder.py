"""A run's folder: whose it is, whether it is finished, where to resume. For train and evaluations.

out/
    run.json              the header; first, so that other settings are noticed
    metrics.jsonl         one line per logged step; other .jsonl files may lie beside it
    checkpoints/step-N/   everything that is needed to resume; an evaluation's go when it is done
    RESULT                backbone.safetensors or report.json; last: with it a run is finished
    .lock                 while a process works here
    .new/                 with --overwrite: the run that will take this one's place

With `overwrite` a run works in `.new/` as it would in the folder. When it is whole, the old files
go and the new ones take their places, the result last. Each step of that is one renaming, so that
a process that is killed anywhere is continued by the next one:

    .new/ --rename--> .whole/ --old files removed, rename--> .placing/ --files moved--> out/
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from synclr_cli import console
from synclr_cli.data import artifacts, exports, locks, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import checkpoint
from synclr_cli.learning.checkpoint import Checkpoint
from synclr_cli.learning.runtime import Runtime

RUN_FILE, METRICS_FILE, REPORT_FILE = "run.json", "metrics.jsonl", "report.json"
_RESULTS = {"train": "backbone.safetensors"}  # other kinds: a report
_CHECKPOINTS, _LOCK = "checkpoints", ".lock"
_NEW, _WHOLE, _PLACING = ".new", ".whole", ".placing"

# What runs of any kind write. None of it is there before run.json, and all of it is replaced.
_WRITTEN = ("backbone.safetensors", "model.safetensors", "config.json", REPORT_FILE, METRICS_FILE,
            "damaged.jsonl", "skipped.jsonl", "confusion.png", "overlays.png", "curves.png",
            "README.md", _CHECKPOINTS, "backbones")  # fmt: skip
# What else synclr makes a folder of, known by a file that a run has not; not even overwritten.
_OTHERS = {
    "_manifest.json": "captions or images",
    exports.EXPORT_FILE: "an exported backbone",
}
_SCHEMAS = {"backbone": "a training run", "report": "an evaluation"}


class RunFolder:
    """One run on disk: the main rank writes, every rank reads.

        with RunFolder(out, "segment", header, rt, overwrite=overwrite) as folder:
            if folder.finished(): ...
            folder.claim()
            saved = folder.resume()
            ... folder.log(line), folder.save(step, groups) ...
            folder.finish(write)

    Leaving the block waits for the checkpoint that is being written, and frees the folder.
    """

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
        """Touch nothing yet.

        Args:
            kind: subcommand.
            header: of the result; who has another one is another run.
            keep: checkpoints.
        """
        self.path, self.kind, self.header, self.runtime = path, kind, header, runtime
        self.overwrite, self.keep = overwrite, keep
        self.work = path / _NEW if overwrite else path  # where files are written
        self.result = _RESULTS.get(kind, REPORT_FILE)
        self._writer, self._held = checkpoint.Writer(), ExitStack()
        self._began, self._before = time.monotonic(), 0.0

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._held:
            self._writer.settle()

    @property
    def seconds(self) -> float:
        """Return how long the work took, what was done before an interruption included."""
        return round(self._before + time.monotonic() - self._began, 2)

    def finished(self) -> bool:
        """Return whether the same command ended here already.

        With `overwrite` that is so only if it was killed while it replaced the old run.

        Raises:
            UsageError: the folder belongs to other settings, other inputs or something else; or
                another process is just replacing it.
            DataError: what says whose it is cannot be read.
        """
        replaced = False
        if self.runtime.is_main and any((self.path / n).is_dir() for n in (_WHOLE, _PLACING)):
            with locks.locked(self.path / _LOCK):
                self._replace()
            replaced = True
        replaced = self.runtime.any(replaced)
        self._require_ours()
        known = self._header(self.path)
        if known is None or (self.overwrite and not replaced):
            return False
        if self.overwrite and not self._is_ours(known):
            return False  # another command was killed while it replaced the run
        artifacts.require_same(self.kind, known, self.header, self.path)
        done = (self.path / self.result).is_file()
        if done and self.runtime.is_main and (self.path / _LOCK).exists():
            with suppress(UsageError), locks.locked(self.path / _LOCK):
                self._tidy(self.path)  # it was killed before it could
        return done

    def claim(self) -> None:
        """Keep other processes out, and begin the run or get ready to resume it.

        Raises:
            UsageError: another process works here, or there can be no folder.
        """
        if self.runtime.is_main:
            self._held.enter_context(locks.locked(self.path / _LOCK))
            storage.make_folder(self.work)
            known = self._header(self.work) if self.overwrite else None
            with storage.disk_errors(self.work):
                if known is not None and not self._is_ours(known):
                    shutil.rmtree(self.work)  # another command's that was not finished
                if not (self.work / RUN_FILE).is_file():
                    storage.write_json(self.work / RUN_FILE, json.loads(self.header.json()))
            self._sweep(self.path)
            self._sweep(self.work)
        self.runtime.barrier()

    def resume(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, None without one; lines logged after it are dropped.

        A damaged one is removed, with a warning, and the one before is taken.

        Raises:
            DataError: there are checkpoints, and all are damaged.
        """
        folder = self.work / _CHECKPOINTS
        saved: Checkpoint | None = None
        damaged: list[Path] = []
        problem = ""
        for path in checkpoint.paths(folder)[::-1]:
            try:
                saved = checkpoint.load(path)
                break
            except DataError as e:
                damaged.append(path)
                problem = str(e)
        self.runtime.barrier()  # every rank has looked
        if damaged and saved is None:
            raise DataError(
                f"the checkpoint is damaged: {problem}",
                do=f"delete {folder}: the same command makes it again, from the beginning",
            )
        if self.runtime.is_main:
            for path in damaged:
                console.warn(f"{path} is damaged and is made again from the one before ({problem})")
                shutil.rmtree(path, ignore_errors=True)
            self._drop_lines(saved.step if saved else 0)
        self.runtime.barrier()
        self._before = float(saved.state.get("seconds", 0.0)) if saved else 0.0
        return saved

    def save(
        self,
        step: int,
        groups: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Save the state after `step` updates, in the background."""
        folder = self.work / _CHECKPOINTS
        # One that is there is this very state: the run resumed from it, and it is not replaced.
        if self.runtime.is_main and not checkpoint.path(folder, step).is_dir():
            header = replace(self.header, schema="checkpoint")
            state = {**(state or {}), "seconds": self.seconds}
            self._writer.save(folder, step, groups, header, state=state, keep=self.keep)

    def settle(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            SynclrError: it could not be written.
        """
        self._writer.settle()
        self.runtime.barrier()

    def log(self, record: Mapping[str, Any], file: str = METRICS_FILE) -> None:
        """Append one line to a .jsonl file; `record` names its step.

        In metrics.jsonl a step is the number of updates done, in others it is counted from 0.
        """
        if self.runtime.is_main:
            storage.append_line(self.work / file, record)

    def lines(self, file: str = METRICS_FILE) -> list[dict[str, Any]]:
        """Return the lines of a .jsonl file."""
        return storage.read_lines(self.work / file)

    def finish(self, write: Callable[[Path], object]) -> None:
        """Have `write(folder)` write the artifacts, the result last; leave nothing but the run.

        The folder is then `path`, whatever it was while the work was done.
        """
        self.settle()
        if self.runtime.is_main:
            write(self.work)
            self._tidy(self.work)
            if self.overwrite:
                self._replace()
        self.work = self.path
        self.runtime.barrier()

    def unfinished(self, step: int, steps: int) -> dict[str, Any]:
        """Say how far the work got when its minutes were up."""
        return {"task": self.kind, "finished": False, "step": step, "steps": steps}

    def _require_ours(self) -> None:
        """Refuse a folder of something else, or of files that no run wrote."""
        for name, what in _OTHERS.items():
            if (self.path / name).is_file():
                raise UsageError(f"{self.path} holds {what}", do="choose another --out")
        own = [name for name in _WRITTEN if not name.endswith((".png", ".md"))]  # anybody's
        present = [name for name in own if (self.path / name).exists()]
        if present and self._header(self.path) is None:
            raise UsageError(
                f"{self.path} holds {', '.join(present)} but no {RUN_FILE}, so it is not a run",
                do="choose another --out",
            )

    def _header(self, folder: Path) -> Header | None:
        """Return the header of the run in a folder, None if there is none."""
        file = folder / RUN_FILE
        if not file.is_file():
            if not (folder / REPORT_FILE).is_file():
                return None
            file = folder / REPORT_FILE  # of an evaluation from before these had a run.json
        try:
            record = storage.read_json(file)
            header = Header.parse(json.dumps(record.get("header", record)), file)
        except DataError as e:
            whole = folder if file.name == RUN_FILE else file
            raise DataError(str(e), do=f"delete {whole}: the same command makes it again") from e
        if header.schema != self.header.schema:
            what = _SCHEMAS.get(header.schema, header.schema)
            raise UsageError(f"{folder} holds {what}", do="choose another --out")
        return header

    def _is_ours(self, known: Header) -> bool:
        try:
            artifacts.require_same(self.kind, known, self.header, self.path)
        except UsageError:
            return False
        return True

    def _replace(self) -> None:
        """Put the whole new run in the place of the old one, from wherever that was interrupted."""
        new, whole, placing = (self.path / name for name in (_NEW, _WHOLE, _PLACING))
        with storage.disk_errors(self.path):
            if not whole.is_dir() and not placing.is_dir():
                new.rename(whole)
            if whole.is_dir():
                for name in (self.result, RUN_FILE, *_WRITTEN):
                    storage.remove(self.path / name)
                whole.rename(placing)
            # run.json first and the result last, as they were written.
            names = sorted(p.name for p in placing.iterdir())
            for name in sorted(names, key=lambda n: (n == self.result) - (n == RUN_FILE)):
                storage.remove(self.path / name)
                (placing / name).rename(self.path / name)
            placing.rmdir()

    def _tidy(self, folder: Path) -> None:
        """Leave nothing in a finished run's folder but what the run is."""
        if self.kind not in _RESULTS:
            shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
        self._sweep(folder)

    def _sweep(self, folder: Path) -> None:
        """Remove what killed processes left half written."""
        for place in (folder, folder / _CHECKPOINTS, folder / "backbones"):
            storage.remove_partials(place)

    def _drop_lines(self, done: int) -> None:
        """Drop the lines of later steps, which are about to be made again."""
        for log in self.work.glob("*.jsonl"):
            last = done if log.name == METRICS_FILE else done - 1
            kept = [line for line in storage.read_lines(log) if line.get("step", last) <= last]
            text = "".join(f"{json.dumps(line)}\n" for line in kept)
            if text == log.read_text(encoding="utf-8"):
                continue
            with storage.atomic_file(log) as partial:
                partial.write_text(text, encoding="utf-8")
