"""End a job: with SIGKILL until it comes to its end, or with SIGTERM in its loop."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from torch import multiprocessing


def kill_until_done(job: partial[object], seconds: float, *, seed: int, most: int = 60) -> int:
    """Start `job` in processes of its own until one ends by itself; return how many were killed.

    Args:
        job: of a function at the top of its module, with its arguments.
        seconds: the longest that a process is left alive at first; each kill adds a tenth, so that
            a job that loses its work every time would come to no end.

    Raises:
        AssertionError: a process failed, or `most` kills were not enough.
    """
    rng = np.random.default_rng(seed)
    # Forked from a fresh process: torch refuses to go backward in a fork of one that has.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([inspect.getmodule(job.func).__name__, __name__])
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11's server looks nowhere else
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    for kills in range(most):
        process = server.Process(target=_quietly, args=(job,))
        process.start()
        # The first is killed at its beginning: one kill is certain, however fast the machine.
        process.join(rng.uniform(0, seconds * (1 + kills / 10)) if kills else 0.05)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0, f"the job ended with {process.exitcode}"
            return kills
        time.sleep(0.01)
    raise AssertionError(f"not done after {most} kills")


def kill_before_every_write(job: partial[object], most: int = 100) -> int:
    """Run `job` to its end, killed before its 1st file gets its name, then its 2nd, its 3rd ...

    Return how many processes were killed.

    Args:
        job: of a function at the top of its module, with its arguments.

    Raises:
        AssertionError: a process failed, or the work does not come to an end.
    """
    for kills in range(most):
        if not is_killed_before_write(job, kills + 1):
            return kills
    raise AssertionError(f"not done after {most} kills")


def is_killed_before_write(job: partial[object], number: int) -> bool:
    """Run a job in a process that is killed before its file of that number gets its name.

    Return whether it came so far.

    Raises:
        AssertionError: it failed.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([inspect.getmodule(job.func).__name__, __name__])
    process = server.Process(target=_dying, args=(job, number))
    process.start()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return True
    assert process.exitcode == 0, f"the job ended with {process.exitcode}"
    return False


def _dying(job: partial[object], number: int) -> None:
    renamings = 0

    def before(rename: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def counted(self: Path, target: Path) -> Path:
            nonlocal renamings
            renamings += 1  # all writes end by one
            if renamings == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)

        return counted

    Path.replace, Path.rename = before(Path.replace), before(Path.rename)
    _quietly(job)


@contextmanager
def sigterm(seconds: float) -> Iterator[None]:
    """Send this process SIGTERM that long after the block began to handle it, and never else.

    A block that fails before, or ends sooner, is not ended by it, nor is pytest.
    """
    before = signal.signal(signal.SIGTERM, _passed_over)
    over = threading.Event()

    def send() -> None:
        while signal.getsignal(signal.SIGTERM) is _passed_over:
            if over.wait(0.01):
                return
        if not over.wait(seconds):
            os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGTERM, before)


def _passed_over(_number: int, _frame: object) -> None:
    """Handle a signal that came when the block was over."""


def _quietly(job: partial[object]) -> None:
    from synclr_cli import console

    console.set_quiet(True)
    job()
