"""Batches made by loader processes, in an order that is known beforehand.

keys of each batch --workers make(key)--> stacked tensors

What one key gives depends on the key alone, so the number of workers changes nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from synclr_cli import rng
from synclr_cli.errors import EngineError, SynclrError

MOST_PROCESSES = 12  # of a rank, where nobody says


def load(
    make: Callable[[Any], Any],
    batches: Batches,
    *,
    workers: int,
    collate: Callable[[list[Any]], Any] = default_collate,
    pin: bool = False,
) -> Iterator[Any]:
    """Yield `collate([make(key) for key in batch])` for each batch of keys.

    Args:
        make: gives a key's item; runs in the loader processes.
        batches: the keys of every batch, in order; may be lazy as long as it has a length.
        workers: loader processes; 0 makes the items in this one, -1 goes by the cores.

    Raises:
        SynclrError: whatever `make` raised, as it raised it.
        EngineError: a loader process was killed, as a rule for lack of memory.
    """
    workers = processes(workers)
    with warnings.catch_warnings():  # of fewer cores than processes, twice; they wait for disks too
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            _Items(make),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_Collate(collate),
            pin_memory=pin,
            worker_init_fn=_start_worker if workers else None,
        )
        ahead = _started(loader)
    while True:
        try:
            batch = next(ahead)
        except StopIteration:
            return
        except RuntimeError as e:
            if not str(e).startswith("DataLoader worker"):
                raise
            raise EngineError(
                f"a loader process ended ({e})",
                do="check for lack of memory, try fewer workers; the same command continues",
            ) from e
        if isinstance(batch, SynclrError):
            raise batch
        yield batch


def processes(workers: int) -> int:
    """Return the loader processes of one rank; for -1 as many as its share of the cores is worth.

    On fewer than four cores none: they would take turns with the training itself.
    """
    if workers >= 0:
        return workers
    machine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = (machine or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun sets it
    return min(cores - 1, MOST_PROCESSES) if cores >= 4 else 0


class EpochOrder:
    """The keys (epoch, image) of one rank's batches, from update `start` on.

    Each epoch goes through the images in an order drawn from (seed, epoch); what does not fill a
    batch is left for another epoch.
    """

    def __init__(
        self, n: int, batch_size: int, *, seed: int, start: int, steps: int, rank: int, world: int
    ):
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.start, self.steps, self.rank, self.world = start, steps, rank, world
        self.steps_per_epoch = n // batch_size

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, ordered_epoch = torch.empty(0), -1
        for step in range(self.start, self.steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                generator = rng.torch_generator("learning.order", self.seed, epoch)
                order, ordered_epoch = torch.randperm(self.n, generator=generator), epoch
            batch = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [(epoch, int(i)) for i in batch[self.rank :: self.world]]


class Batches(Protocol):
    """The keys of batches in order: a list, or something lazy that knows its length."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sequence[Any]]: ...


class _Items(Dataset[Any]):
    def __init__(self, make: Callable[[Any], Any]):
        self.make = make

    def __getitem__(self, key: Any) -> Any:
        # DataLoader would wrap the error in a traceback of the worker; ours travel as values.
        try:
            return self.make(key)
        except SynclrError as e:
            return e


class _Collate:
    def __init__(self, collate: Callable[[list[Any]], Any]):
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        failed = next((item for item in items if isinstance(item, SynclrError)), None)
        return failed if failed is not None else self.collate(items)


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the loader processes, and keep torch's SIGCHLD handler out.

    Once a loader process is killed, that handler raises in the main thread between any two lines:
    in the middle of an update, when nothing can be saved. Without it the next batch that is asked
    for raises, within a few seconds.
    """
    child = getattr(signal, "SIGCHLD", None)
    if child is None or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(child)
    ahead = iter(loader)
    signal.signal(child, before)
    return ahead


def _start_worker(_worker: int) -> None:
    # Ctrl-C reaches the whole process group, but stopping is the main process's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def in_batches(keys: Iterable[int], size: int) -> list[list[int]]:
    """Return the keys cut into lists of `size`, the last one shorter."""
    every = list(keys)
    return [every[i : i + size] for i in range(0, len(every), size)]
