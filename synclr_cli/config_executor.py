"""Where parts are made and evaluations run: all of it running keys, nothing of the recipe.

An artifact does not say where its parts were made, since their bytes are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from synclr_cli.errors import UsageError
from synclr_cli.fields import Checked, Form, setting

EXECUTORS = ("local", "ray")
MOST_WORKERS = 100_000


def is_workers(value: str) -> bool:
    """Return whether a text is N, or MIN:MAX with MIN no more than MAX, from 1 on; or empty."""
    if not value:
        return True
    low, _, high = value.partition(":")
    numbers = [low, high] if ":" in value else [low]
    if len(value) > 15 or not all(n.isdecimal() for n in numbers):
        return False
    counts = [int(n) for n in numbers]
    return 1 <= counts[0] <= counts[-1] <= MOST_WORKERS


WORKERS = Form("N, or MIN:MAX with MIN no more than MAX", is_workers)


@dataclass(frozen=True)
class ExecutorConfig(Checked):
    """Where parts are made: in this process, or by workers on a Ray cluster."""

    on: str = setting(
        "local", EXECUTORS, "make the parts in this process, or on a Ray cluster", running=True
    )
    workers: str = setting(
        "",
        WORKERS,
        'with ray: processes with one engine each, N or MIN:MAX; "": as many as fit',
        running=True,
    )
    num_gpus: float = setting(
        0.0, "[0, 64]", "of each worker; below 1 several share one", unit="GPUs", running=True
    )
    num_cpus: float = setting(1.0, "[0.01, 1024]", "of each worker", unit="cores", running=True)
    address: str = setting(
        "",
        None,
        'of the cluster, HOST:PORT or auto; "": RAY_ADDRESS, or this machine alone',
        running=True,
    )
    wait: float = setting(
        30.0, "[0, 1e6]", "for the cluster to have what the workers need", unit="s", running=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers and self.on != "ray":
            raise UsageError(
                f"{self.TABLE}.workers", got=f"{self.workers} with --on {self.on}",
                do="add --on ray",
            )  # fmt: skip

    @property
    def fewest_workers(self) -> int:
        """Return the workers without which the work is not begun; 1 if none are named."""
        return int(self.workers.partition(":")[0] or 1)

    @property
    def most_workers(self) -> int | None:
        """Return the most workers that there are to be, None for as many as fit."""
        return int(self.workers.rpartition(":")[2]) if self.workers else None


@dataclass(frozen=True)
class CaptionsExecutorConfig(ExecutorConfig):
    """Where the parts of captions/ are made."""

    TABLE = "captions.executor"


@dataclass(frozen=True)
class RenderExecutorConfig(ExecutorConfig):
    """Where the parts of images/ are made."""

    TABLE = "render.executor"


@dataclass(frozen=True)
class LinearProbeExecutorConfig(ExecutorConfig):
    """Where several linear probes run."""

    TABLE = "linear-probe.executor"


@dataclass(frozen=True)
class FinetuneExecutorConfig(ExecutorConfig):
    """Where several runs of finetune run."""

    TABLE = "finetune.executor"


@dataclass(frozen=True)
class SegmentExecutorConfig(ExecutorConfig):
    """Where several runs of segment run."""

    TABLE = "segment.executor"
