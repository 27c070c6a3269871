"""The runtime alone: one rank is an ordinary world, and stopping is asked for, not forced."""

from __future__ import annotations

import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from synclr_cli.errors import EngineError
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


def pretend(monkeypatch: pytest.MonkeyPatch, kind: str, count: int = 1) -> None:
    """Let torch see `count` accelerators of a kind, without one to work on."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_any_accelerator_of_torch_is_taken(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    assert runtime.pick_device() == torch.device("cpu")
    pretend(monkeypatch, kind, 4)
    assert runtime.pick_device() == torch.device(kind, 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert runtime.pick_device() == torch.device(kind, 3)
    monkeypatch.setenv("SYNCLR_DEVICE", "cpu")
    assert runtime.pick_device() == torch.device("cpu")


def test_a_device_that_is_not_there_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCLR_DEVICE", "cuda")
    with pytest.raises(
        EngineError, match=r"SYNCLR_DEVICE=cuda: got .*no GPU, expected auto or cpu"
    ):
        runtime.pick_device()
    pretend(monkeypatch, "mps")
    with pytest.raises(EngineError, match="sees mps, expected auto, cpu or mps") as raised:
        runtime.pick_device()
    assert raised.value.exit_code == 4 and "\n" not in str(raised.value)


def test_more_ranks_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda", 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(EngineError, match=r"rank 2.*got 2 cuda devices.*--nproc-per-node 2"):
        runtime.pick_device()


def test_float64_is_worked_in_on_the_host_where_apples_gpu_has_none() -> None:
    """`mps` without one: fake tensors of a device that this torch is not built for do not exist."""
    for kind, there in (("cpu", "cpu"), ("cuda", "cuda"), ("mps", "cpu"), ("xpu", "xpu")):
        rt = runtime.Runtime(torch.device(kind), None)
        assert rt.exact_device.type == there
        assert rt.compiles == (kind in ("cuda", "xpu") and find_spec("triton") is not None)


def test_no_module_but_the_known_ones_asks_for_float64() -> None:
    """Each of these works on `exact_device`, on `exact(...)` or on the host."""
    package = Path(runtime.__file__).parents[1]
    asking = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if ".double()" in path.read_text(encoding="utf-8")
        or "torch.float64" in path.read_text(encoding="utf-8")
    }
    assert asking == {
        "captions/engines/local/sampling.py",  # moves to the host
        "learning/runtime.py",
        "linear_probe/lbfgs.py",  # as logistic
        "linear_probe/logistic.py",  # is given tensors on `exact_device`
        "linear_probe/newton.py",  # as logistic
        "render/engines/pocket/text.py",  # `fit`, of the tools alone
        "show/run.py",  # on the host
        "train/metrics.py",  # a sum of counts, where `exact` left them
    }
