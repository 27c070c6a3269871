"""A rank that fails ends all of them within seconds, with one line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from synclr_cli.learning import ranks

PROGRAM = textwrap.dedent("""
    import os, signal, sys, time
    import torch
    from synclr_cli import cli
    from synclr_cli.errors import DataError
    from synclr_cli.learning import runtime

    what, rank = sys.argv[1], int(os.environ["RANK"])

    def work():
        with runtime.started("float32") as rt:
            rt.barrier()
            if what == f"raises-{rank}":
                raise DataError("image 7 does not decode")
            if what == f"killed-{rank}":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "fits":
                def fit():
                    time.sleep(1)
                    raise DataError("one class only")
                rt.from_main(fit)
            if what.endswith("busy"):  # in a computation that meets nobody
                if rank == 1:
                    raise DataError("image 7 does not decode")
                time.sleep(60)
            rt.sum(torch.ones(1))  # waits for the other
            time.sleep(60)

    cli.app = lambda *_, **__: work()
    cli.main(["train"])
""")


def end(what: str) -> tuple[list[int], list[str], float]:
    """Run two ranks; return their exit codes, the lines they printed, and the seconds it took."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, what], stderr=subprocess.PIPE, text=True,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    ended: list[float] = []
    while len(ended) < 2:
        ended += [time.monotonic()] * (sum(r.poll() is not None for r in ranks) - len(ended))
        time.sleep(0.05)
    lines = [line for rank in ranks for line in rank.communicate()[1].splitlines()]
    errors = [line for line in lines if line.startswith("error: ") or "Traceback" in line]
    return [rank.returncode for rank in ranks], errors, ended[1] - ended[0]


def test_ranks_meet_anew_in_the_store_of_a_meeting_before() -> None:
    store = HashStore()
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(ranks.meet, store, rank, 3) for rank in range(3)]
        assert len({rank.result(timeout=10) for rank in first}) == 1
        late = [pool.submit(ranks.meet, store, rank, 3) for rank in (1, 2)]
        time.sleep(0.2)  # they see what the main rank of before has left
        names = {rank.result(timeout=10) for rank in [*late, pool.submit(ranks.meet, store, 0, 3)]}
    assert len(names) == 1
    assert names != {first[0].result()}


@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_of_one_rank_ends_both_and_is_printed_once(rank: int) -> None:
    codes, errors, seconds = end(f"raises-{rank}")
    assert codes == [3, 3]
    assert errors == ["error: image 7 does not decode"]
    assert seconds < 10


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_other_with_a_line(rank: int) -> None:
    codes, errors, seconds = end(f"killed-{rank}")
    assert codes[rank] == -9 and codes[1 - rank] == 4
    assert len(errors) == 1 and "ended without a word. Check for lack of memory" in errors[0]
    assert seconds < 10


def test_an_error_while_the_others_wait_for_the_main_rank_ends_them() -> None:
    codes, errors, seconds = end("fits")
    assert codes == [3, 3] and errors == ["error: one class only"]
    assert seconds < 10


def test_a_rank_that_is_busy_is_ended_too() -> None:
    codes, errors, seconds = end("busy")
    assert codes == [3, 3] and errors == ["error: image 7 does not decode"]
    assert seconds < 10
