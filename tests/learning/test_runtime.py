"""The runtime alone: one rank is an ordinary world, and stopping is asked for, not forced."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from synclr_cli.learning import runtime
from synclr_cli.learning.stopping import StopFlag


def test_one_rank_needs_no_process_group() -> None:
    with runtime.started("float32") as rt:
        x = torch.randn(3, requires_grad=True)
        assert (rt.rank, rt.world, rt.is_main) == (0, 1, True)
        assert torch.equal(rt.gather(x), x) and not rt.gather(x).requires_grad
        assert torch.equal(rt.sum(x), x) and not rt.sum(x).requires_grad
        assert rt.sum_with_gradient(x) is x
        assert rt.any(True) and not rt.any(False)
        rt.barrier()
    assert not torch.distributed.is_initialized()


def test_autocast_follows_the_precision() -> None:
    a = torch.randn(2, 2)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with runtime.started(precision) as rt, rt.autocast():
            assert (a @ a).dtype == dtype


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_taken_where_it_is_fast_and_a_wish_for_it_elsewhere_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    found = {}
    for precision in ("auto", "float32", "bfloat16"):
        with runtime.started(precision) as rt:
            found[precision] = rt.amp_dtype, "only emulates it" in capsys.readouterr().err
    assert found == {
        "auto": (torch.bfloat16 if fast else None, False),
        "float32": (None, False),
        "bfloat16": (torch.bfloat16, not fast),
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_asks_and_a_second_interrupts(number: int) -> None:
    before = signal.getsignal(number)
    with StopFlag() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.signalled
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
    assert signal.getsignal(number) is before


def test_minutes_run_out() -> None:
    with StopFlag(after_minutes=0.02 / 60) as stop:
        assert not stop.out_of_time
        time.sleep(0.03)
        assert stop.out_of_time and stop.requested and not stop.signalled
