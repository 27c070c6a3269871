"""Kill a job with SIGKILL again and again, at moments nobody chose, until it comes to its end."""

from __future__ import annotations

import inspect
import os
import signal
import time
from functools import partial

import numpy as np
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
    for kills in range(most):
        process = server.Process(target=_quietly, args=(job,))
        process.start()
        process.join(rng.uniform(0, seconds * (1 + kills / 10)))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0, f"the job ended with {process.exitcode}"
            return kills
        time.sleep(0.01)
    raise AssertionError(f"not done after {most} kills")


def _quietly(job: partial[object]) -> None:
    from synclr_cli import console

    console.set_quiet(True)
    job()
