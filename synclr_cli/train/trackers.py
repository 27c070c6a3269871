"""The lines of metrics.jsonl, also in TensorBoard, Weights & Biases or trackio.

    train.trackers --open_trackers--> Trackers --log(line)--> their own libraries

A library is imported only when it is asked for. Accounts, servers and offline mode are set the
library's own way (`WANDB_MODE=offline`, `TRACKIO_SPACE_ID` and so on).
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Protocol

from synclr_cli.data.artifacts import Header
from synclr_cli.errors import EngineError
from synclr_cli.learning.runtime import Runtime

PROJECT = "synclr"


class Tracker(Protocol):
    """One library's run."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers of a step."""

    def close(self) -> None:
        """Write what is held back."""


class TensorBoard:
    """Event files in `out/tensorboard`."""

    def __init__(self, out: Path, header: Header, done: int):
        _load("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        # What was logged after the checkpoint that the run goes on from is hidden.
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)
        if not done:
            settings = "\n".join(f"    {k} = {v!r}" for k, v in header.config.items())
            self._writer.add_text("config", settings)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add one scalar each."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; the same run after a resume."""

    def __init__(self, out: Path, header: Header, done: int):
        del done
        wandb = _load("wandb")
        try:
            self._run = wandb.init(
                project=PROJECT,
                name=out.resolve().name,
                id=_id(out, header),
                dir=str(out),
                config=dict(header.config),
                resume="allow",
            )
        except wandb.Error as e:
            raise EngineError(
                f"train.trackers: wandb does not start ({e})",
                do="run wandb login, or set WANDB_MODE=offline",
            ) from e

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers as one row."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Finish the run, which syncs it unless it is offline."""
        self._run.finish()


class Trackio:
    """A run of trackio, in its local database or space."""

    def __init__(self, out: Path, header: Header, done: int):
        del done
        self._library = _load("trackio")
        self._library.init(
            project=PROJECT,
            name=f"{out.resolve().name}-{_id(out, header)}",
            config=dict(header.config),
            resume="allow",
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers as one row."""
        self._library.log(dict(numbers), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._library.finish()


KINDS = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


class Trackers:
    """All that were asked for."""

    def __init__(self, opened: list[Tracker]):
        self._opened = opened

    def log(self, line: Mapping[str, float]) -> None:
        """Give them the numbers of a line of metrics.jsonl."""
        numbers = {k: v for k, v in line.items() if k != "step"}
        for tracker in self._opened:
            tracker.log(int(line["step"]), numbers)


@contextmanager
def open_trackers(
    names: tuple[str, ...], out: Path, header: Header, rt: Runtime, done: int
) -> Iterator[Trackers]:
    """Open the main rank's trackers for a block.

    Args:
        done: updates before the block.

    Raises:
        EngineError: a library is not installed, or does not start.
    """
    opened: list[Tracker] = []
    with ExitStack() as stack:
        for name in names if rt.is_main else ():
            with redirect_stdout(sys.stderr):  # where libraries' greetings do not belong
                tracker: Tracker = KINDS[name](out, header, done)
            stack.callback(_close, tracker)
            opened.append(tracker)
        yield Trackers(opened)


def _close(tracker: Tracker) -> None:
    with redirect_stdout(sys.stderr):
        tracker.close()


def require(names: tuple[str, ...]) -> None:
    """Refuse trackers that are not installed, before any work is done.

    Raises:
        EngineError: names the package.
    """
    for name in names:
        _load(name)


def _load(name: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
        # A folder of that name where one works (W&B makes one) is taken for an empty package.
        if module.__file__ is None:
            raise ImportError(f"only a folder {name} is there")
    except ImportError as e:
        raise EngineError(
            f"train.trackers: {name} cannot be imported ({e})", do=f"get it: pip install {name}"
        ) from e
    return module


def _id(out: Path, header: Header) -> str:
    """Return a name for a run that is the same after a resume, and another's is not."""
    return hashlib.sha256(f"{out.resolve()} {header.json()}".encode()).hexdigest()[:12]
