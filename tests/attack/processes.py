"""Command lines as processes of their own, quick to start: forked from one that has imported torch.

with limits: memory (watched, not limited), file size, open files; the error as it was written
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import pytest
from torch import multiprocessing

_PRELOADED = ["synclr_cli.cli", "timm", "torchvision", "pyarrow.parquet", "safetensors.torch",
              "synclr_cli.learning.supervised", "synclr_cli.train.run", __name__]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a process ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """Return the one error line; fail if it is not the last."""
        last = self.err.strip().splitlines()[-1]
        assert last.startswith("error: "), self.err
        return last


@dataclass
class Running:
    """A command that was started."""

    process: multiprocessing.Process
    folder: Path  # of its output

    def wait(self, seconds: float = 120) -> Outcome:
        """Return how it ended.

        Raises:
            AssertionError: it did not, and was killed.
        """
        self.process.join(seconds)
        hangs = self.process.exitcode is None
        if hangs:
            self.process.kill()
            self.process.join()
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        assert not hangs, f"still running after {seconds} s: {err[-500:]}"
        return Outcome(self.process.exitcode, out, err)

    def megabytes(self) -> float:
        """Return the most memory that it took beyond what it was forked with, once it has ended."""
        return float((self.folder / "megabytes").read_text())


def start(
    folder: Path,
    arguments: Sequence[object],
    *,
    largest_file: int | None = None,
    open_files: int | None = None,
    clock: float | None = None,
) -> Running:
    """Start a command.

    Args:
        folder: empty, for what it prints.
        largest_file: bytes; writing beyond fails as a full disk does.
        open_files: descriptors.
        clock: seconds that `time.time` goes backward with each call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("out", "err"):
        (folder / name).touch()
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_PRELOADED)
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11's server looks nowhere else
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    given = [str(a) for a in arguments]
    process = server.Process(target=_run, args=(folder, given, largest_file, open_files, clock))
    process.start()
    return Running(process, folder)


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB


def _run(
    folder: Path,
    arguments: list[str],
    largest_file: int | None,
    open_files: int | None,
    clock: float | None,
) -> None:
    from synclr_cli.cli import main

    before = _memory()
    if open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    if clock:
        now, calls = time.time(), iter(range(1 << 30))
        time.time = lambda: now - clock * next(calls)
    code = 1
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        os.dup2(err.fileno(), 2)
        if largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main(arguments)
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 0
        except BaseException:
            import traceback

            traceback.print_exc(file=err)
    if not largest_file:
        (folder / "megabytes").write_text(str(_memory() - before))
    os._exit(code)
