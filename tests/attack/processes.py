"""Command lines as processes of their own, quick to start: forked from one that has imported torch.

with limits: memory (watched, not limited), file size, open files; the error as it was written
"""

from __future__ import annotations

import io
import os
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any

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
    megabytes: float  # the most memory that it took beyond what it was forked with

    @property
    def error_line(self) -> str:
        """Return the one error line; fail if it is not the last."""
        last = self.err.strip().splitlines()[-1]
        assert last.startswith("error: "), self.err
        return last


@dataclass
class Running:
    """A command that was started."""

    process: Any
    said: Any  # a connection that gives code, out, err and megabytes when it ends

    def wait(self, seconds: float = 120) -> Outcome:
        """Return how it ended.

        Raises:
            AssertionError: it did not, and was killed.
        """
        try:
            assert self.said.poll(seconds), f"still running after {seconds} s"
            return self.said.recv()
        finally:
            self.end()

    def end(self) -> int:
        """Kill it if it still runs; return its exit code."""
        if self.process.exitcode is None and not self.said.poll():
            self.process.kill()
        self.process.join()
        return self.process.exitcode


def start(
    arguments: Sequence[object],
    *,
    largest_file: int | None = None,
    open_files: int | None = None,
    clock: float | None = None,
) -> Running:
    """Start a command.

    Args:
        largest_file: bytes; writing beyond fails as a full disk does.
        open_files: descriptors.
        clock: seconds that `time.time` goes backward with each call.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_PRELOADED)
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11's server looks nowhere else
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    given = [str(a) for a in arguments]
    said, sender = server.Pipe(duplex=False)
    process = server.Process(target=_run, args=(sender, given, largest_file, open_files, clock))
    process.start()
    sender.close()
    return Running(process, said)


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB


def _run(
    sender: Any,
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
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    code, out, err = 1, io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(arguments)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0
    except BaseException:
        traceback.print_exc(file=err)
    sender.send(Outcome(code, out.getvalue(), err.getvalue(), _memory() - before))
    os._exit(code)
