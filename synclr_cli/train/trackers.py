"""The lines of metrics.jsonl, also in TensorBoard, Weights & Biases or trackio.

    train.trackers --open_trackers--> log(line) --> their own libraries

A library is imported only when its name is set. Accounts, servers and offline mode are set the
library's own way (`WANDB_MODE=offline`, `TRACKIO_SPACE_ID` and so on).
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType

from synclr_cli.data.artifacts import Header
from synclr_cli.errors import EngineError
from synclr_cli.learning.runtime import Runtime

PROJECT = "synclr"


Log = Callable[[int, Mapping[str, float]], None]  # of a step's numbers
Close = Callable[[], None]


def _tensorboard(out: Path, header: Header, done: int) -> tuple[Log, Close]:
    """Write event files to `out/tensorboard`."""
    _load("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    # What was logged after the checkpoint that the run resumes from is hidden.
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)
    if not done:
        settings = "\n".join(f"    {k} = {v!r}" for k, v in header.config.items())
        writer.add_text("config", settings)

    def log(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, writer.close


def _wandb(out: Path, header: Header, _done: int) -> tuple[Log, Close]:
    """Open a run of Weights & Biases; the same run after a resume."""
    library = _load("wandb")
    names = {"name": out.resolve().name, "id": _id(out, header), "dir": str(out)}
    try:
        run = library.init(project=PROJECT, config=dict(header.config), resume="allow", **names)
    except library.Error as e:
        raise EngineError(
            f"train.trackers: wandb does not start ({e})",
            do="run wandb login, or set WANDB_MODE=offline",
        ) from e
    return lambda step, numbers: run.log(dict(numbers), step=step), run.finish


def _trackio(out: Path, header: Header, _done: int) -> tuple[Log, Close]:
    """Open a run of trackio, in its local database or space."""
    library = _load("trackio")
    name = f"{out.resolve().name}-{_id(out, header)}"
    library.init(project=PROJECT, name=name, config=dict(header.config), resume="allow")
    return lambda step, numbers: library.log(dict(numbers), step=step), library.finish


_KINDS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}


@contextmanager
def open_trackers(
    names: tuple[str, ...], out: Path, header: Header, rt: Runtime, done: int
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Open the main rank's trackers for a block; give what hands them a line of metrics.jsonl.

    Args:
        done: updates before the block.

    Raises:
        EngineError: a library is not installed, or does not start.
    """
    logs: list[Log] = []
    with ExitStack() as stack:
        for name in names if rt.is_main else ():
            with redirect_stdout(sys.stderr):  # where libraries' greetings do not belong
                log, close = _KINDS[name](out, header, done)
            stack.callback(_quietly, close)
            logs.append(log)

        def log_all(line: Mapping[str, float]) -> None:
            numbers = {k: v for k, v in line.items() if k != "step"}
            for log in logs:
                log(int(line["step"]), numbers)

        yield log_all


def _quietly(close: Close) -> None:
    with redirect_stdout(sys.stderr):
        close()


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
        # A folder of that name where one works (W&B makes one) imports as an empty package.
        if module.__file__ is None:
            raise ImportError(f"there is only a folder {name}")
    except ImportError as e:
        raise EngineError(
            f"train.trackers: {name} cannot be imported ({e})", do=f"get it: pip install {name}"
        ) from e
    return module


def _id(out: Path, header: Header) -> str:
    """Return a name for a run that is the same after a resume, and another's is not."""
    return hashlib.sha256(f"{out.resolve()} {header.json()}".encode()).hexdigest()[:12]
