"""Kill a job with SIGKILL again and again, at moments nobody chose, until it comes to its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np
from torch import multiprocessing


def kill_until_done(job: Callable[[], object], seconds: float, *, seed: int, most: int = 60) -> int:
    """Start `job` in processes of its own until one ends by itself; return how many were killed.

    Args:
        seconds: the longest that a process is left alive at first; each kill adds a tenth, so that
            a job that loses its work every time would come to no end.

    Raises:
        AssertionError: a process failed, or `most` kills were not enough.
    """
    rng = np.random.default_rng(seed)
    for kills in range(most):
        process = multiprocessing.get_context("fork").Process(target=_quietly, args=(job,))
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


def _quietly(job: Callable[[], object]) -> None:
    from synclr_cli import console

    console.set_quiet(True)
    job()
