"""The process a torch stage runs in: device, precision, and its place among the ranks.

One process without a process group is an ordinary world of one rank: every collective here then
returns its input, so no caller asks whether it is distributed. torchrun's variables start a group.
The only module that imports `torch.distributed`.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from synclr_cli import console, rng
from synclr_cli.errors import EngineError, SynclrError
from synclr_cli.learning import ranks

_watch: ranks.Watch | None = None  # of the group that this process is in


@dataclass(frozen=True)
class Runtime:
    """Device, precision and place among the ranks."""

    device: torch.device
    amp_dtype: torch.dtype | None  # None: no autocast
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Return whether this rank writes the files."""
        return self.rank == 0

    @property
    def is_cuda(self) -> bool:
        """Return whether the device is a GPU of the CUDA kind."""
        return self.device.type == "cuda"

    @property
    def compiles(self) -> bool:
        """Return whether torch compiles for the device: it does so for GPUs, through Triton."""
        return self.device.type in ("cuda", "xpu") and find_spec("triton") is not None

    @property
    def exact_device(self) -> torch.device:
        """Return where float64 is worked in: Apple's GPUs have none."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def autocast(self) -> AbstractContextManager[object]:
        """Run matrix products in the run's precision inside the block."""
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype)

    def upload(self, x: Tensor) -> Tensor:
        """Return a tensor of the host on the device; the host does not wait for the copy."""
        return send(x, self.device)

    def gather(self, x: Tensor) -> Tensor:
        """Return all ranks' equally shaped rows, in rank order; no gradient flows back."""
        if self.world == 1:
            return x.detach()
        every = [torch.empty_like(x) for _ in range(self.world)]
        dist.all_gather(every, x.detach().contiguous())
        return torch.cat(every)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks; no gradient flows back."""
        total = x.detach().clone()
        if self.world > 1:
            dist.all_reduce(total)
        return total

    def sum_with_gradient(self, x: Tensor) -> Tensor:
        """Return the sum over ranks; each rank's gradient is the sum of what the ranks send back.

        With losses whose mean over ranks is the loss, the mean of the ranks' gradients is then the
        gradient, as if one process had summed.
        """
        return x if self.world == 1 else _SumOverRanks.apply(x)

    def sum_later(self, x: Tensor) -> Callable[[], None]:
        """Start summing over ranks, in place; return what waits for it."""
        work = dist.all_reduce(x, async_op=True)

        def wait() -> None:
            work.wait()

        return wait

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; the hosts tell each other."""
        return flag if self.world == 1 else bool(self.sum(torch.tensor(float(flag))).item())

    def all(self, flag: Tensor) -> Tensor:
        """Return whether the flag is set on all ranks, on the device it is on."""
        return flag if self.world == 1 else self.sum((~flag).float()) == 0

    def step(self, optimizer: torch.optim.Optimizer, finite: Tensor | None = None) -> None:
        """Let an optimiser of fused updates take a step, if `finite` says so, on the device."""
        own: Any = getattr(optimizer, "optim", optimizer)  # of the rank's share, if sharded
        if finite is not None:
            own.grad_scale, own.found_inf = None, (~finite).float()  # as torch's GradScaler does
        optimizer.step()

    def raise_any(self, error: SynclrError | None) -> None:
        """Raise an error that any rank has, on every rank; only one rank will print it."""
        if self.any(error is not None):
            raise error or ranks.RankError()

    def from_main(self, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what `make` gives on the main rank, JSON values, on every rank.

        It may take longer than a collective may; an error of it is raised on every rank.
        """
        return dict(make()) if _watch is None else _watch.from_main(make)

    def optimizer(
        self,
        kind: type[torch.optim.Optimizer],
        groups: list[dict[str, Any]],
        *,
        sharded: bool,
        **options: Any,
    ) -> torch.optim.Optimizer:
        """Return an optimiser; `sharded`: each rank keeps the moments of its share of the weights.

        A sharded one does what a whole one does, for one more message a step (ZeRO, stage 1).
        """
        if self.world == 1 or not sharded:
            return kind(groups, **options)
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(groups, optimizer_class=kind, **options)

    def state_of(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return an optimiser's whole state on the main rank; every rank must call it."""
        if hasattr(optimizer, "consolidate_state_dict"):
            optimizer.consolidate_state_dict(to=0)
            if not self.is_main:
                return {"state": {}}
        return optimizer.state_dict()

    def shard(self, modules: Iterable[nn.Module], methods: Mapping[str, nn.Module]) -> None:
        """Keep a share of the modules' parameters on each rank, inner modules first (FSDP).

        They are whole while the module's `forward`, its backward pass or one of `methods` runs.
        """
        from torch.distributed import device_mesh, fsdp

        mesh = device_mesh.init_device_mesh(self.device.type, (self.world,))
        for module in modules:
            fsdp.fully_shard(module, mesh=mesh, reshard_after_forward=True)
        for name, module in methods.items():
            fsdp.register_fsdp_forward_method(module, name)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    def share_batch_norms(self, module: nn.Module) -> nn.Module:
        """Let batch norms count the pictures of all ranks; torch can on GPUs only."""
        if self.world == 1 or self.device.type != "cuda":
            return module
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)

    def same_buffers(self, module: nn.Module) -> None:
        """Give every rank the main rank's buffers: batch norms that count each rank for itself."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module so that its gradients are averaged over ranks."""
        if self.world == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids)


def send(x: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """Return what is on the host on a device; the host does not wait for the copy."""
    x = torch.from_numpy(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x
    if device.type == "cuda":
        x = x.pin_memory()  # a copy from other memory waits for all that the GPU has to do
    return x.to(device, non_blocking=True)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # noqa: ARG004
        total = upstream.clone()
        dist.all_reduce(total)
        return total


@contextmanager
def started(precision: str) -> Iterator[Runtime]:
    """Set up device, precision and (under torchrun) the process group; tear them down after.

    Args:
        precision: auto | float32 | bfloat16.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = pick_device()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.accelerator.set_device_index(device)
    if precision == "bfloat16" and not has_fast_bfloat16(device):
        console.warn(
            "precision bfloat16: got a device that only emulates it, many times slower than "
            "float32; expected one that multiplies it in hardware; set precision to auto"
        )
    with joined():
        yield Runtime(device, amp_dtype(precision, device), rank, world)


def pick_device() -> torch.device:
    """Return the device a process works on: its rank's accelerator, or the CPU if there is none.

    The variable SYNCLR_DEVICE asks for a kind of device: auto | cpu | cuda | mps | xpu, or another
    that torch knows. It is the machine's, so no recipe and no header has it.

    Raises:
        EngineError: the machine has no such device, or fewer of them than ranks.
    """
    name = os.environ.get("SYNCLR_DEVICE") or "auto"
    has_one = torch.accelerator.is_available()
    own = torch.accelerator.current_accelerator() if has_one else None
    kind = own.type if own is not None else "cpu"
    if name not in ("auto", "cpu", kind):
        raise EngineError(
            f"SYNCLR_DEVICE={name}",
            got=f"a machine on which torch sees {'no GPU' if kind == 'cpu' else kind}",
            expected="auto or cpu" if kind == "cpu" else f"auto, cpu or {kind}",
            do=f"unset it, or install the build of torch for {name}",
        )
    if name == "cpu" or kind == "cpu":
        return torch.device("cpu")
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if rank >= count:
        raise EngineError(
            f"rank {rank} of this machine",
            got=f"{count} {kind} device{'s' * (count != 1)}",
            expected="one for each rank",
            do=f"start torchrun with --nproc-per-node {count}",
        )
    return torch.device(kind, rank)


@contextmanager
def joined() -> Iterator[None]:
    """Be in the process group that torchrun announced, for the block; without torchrun, nothing.

    Blocks may lie inside each other. Several runs in one process share one group that way: a second
    group at the same address would meet ranks that are still leaving the first. An error that
    leaves the block ends the other ranks too, within seconds, and is printed by one (see `ranks`).
    """
    global _watch
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield
        return
    device = pick_device()
    if device.type != "cpu":  # before the group: NCCL takes the current device for the rank's
        torch.accelerator.set_device_index(device)
    try:
        backend = dist.get_default_backend_for_device(device)
        # Hosts talk to each other without their devices.
        both = f"cpu:gloo,{device.type}:{backend}"
        store, rank, world = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        store = dist.PrefixStore(ranks.meet(store, rank, world), store)  # type: ignore[attr-defined]
        dist.init_process_group(
            backend if device.type == "cpu" else both, store=store, rank=rank, world_size=world
        )
    except (RuntimeError, ValueError) as e:
        raise EngineError(f"cannot join the {world} ranks torchrun announced ({e})") from e
    _watch = ranks.Watch(store, rank, world)
    _watch.start()
    failed = True
    try:
        yield
        failed = False
    except BaseException as e:
        if (other := _watch.fail(e)) is not None:
            raise other from e
        raise
    finally:
        if not failed or device.type == "cpu":  # NCCL would wait for the rank that is gone
            dist.destroy_process_group()  # breaks off what the others wait in
        if failed:
            _watch.leave()
        _watch.stop()
        _watch = None


def keep_freed_memory() -> None:
    """Ask glibc to keep what tensors free for the next ones; elsewhere nothing happens.

    By default it gives large blocks back to the system at once, and each new tensor is made of
    pages that are cleared one by one: up to a tenth of a training step on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:  # another C library
        return
    trim_threshold, mmap_threshold = -1, -3  # names of options in malloc.h
    set_option(trim_threshold, 2**31 - 1)
    if not set_option(mmap_threshold, 1 << 30):
        set_option(mmap_threshold, 1 << 25)  # the most that glibc takes before 2.35


def amp_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast type for a precision setting, None for plain float32."""
    if precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device)):
        return torch.bfloat16
    return None


def dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type of weights that a dtype setting names; auto: the fastest to multiply."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32


def exact(x: Tensor) -> Tensor:
    """Return the tensor in float64: where it is, or on the host if that is a GPU of Apple's."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return device.type == "xpu"  # Apple's GPUs only gained it with the M2, under macOS 14
    # AVX-512 without the BF16 instructions only emulates it, slower than float32.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(getattr(torch.cpu, name, lambda: False)() for name in checks):
        return True
    try:  # Arm's, which torch has no question for
        return "bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:  # no Linux: nothing known, so the format that is never slow
        return False


def seed_everything(seed: int) -> None:
    """Seed the global generators that libraries draw from (initial weights, mixup)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def seeded(name: str, *ids: int) -> Iterator[None]:
    """Let the global generators in the block draw from name and ids alone, outside as before.

    For libraries that take no generator (timm's augmentation and mixup): what they draw is then a
    function of the ids, whatever was drawn before and in whichever process.
    """
    seed = rng.seed(name, *ids)
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would wake CUDA
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
