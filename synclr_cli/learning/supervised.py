"""What the judges that train have in common: their batches, the best moment, and when to stop.

data --batches--> a step --checked--> its loss --Best.take--> the moment validation likes most
                                      --pause--> saved, and stopped if somebody asked for it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from synclr_cli import console
from synclr_cli.data.labelled import Labelled
from synclr_cli.errors import DivergedError, UsageError
from synclr_cli.learning import loader
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.learning.runtime import Runtime, StopFlag


class Settings(Protocol):
    """What `batches` reads of a judge's config."""

    @property
    def batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def workers(self) -> int: ...


class Moment(Protocol):
    """All that changes while training."""

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return what a checkpoint keeps as tensors."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Return what a checkpoint keeps as JSON."""
        ...


@dataclass
class Best:
    """The moment some weights were best on the validation split."""

    at: int = 0  # epoch or step
    score: float = -1.0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def take(self, at: int, score: float, model: nn.Module) -> None:
        """Take in a look at the validation split; of equals the later moment is best."""
        if score >= self.score:
            self.at, self.score = at, score
            self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Return all but the weights, as JSON."""
        return {"at": self.at, "score": self.score}


def require_fit(stage: str, batch_size: int, opened: Backbone, pictures: Labelled) -> None:
    """Check what every judge that trains needs.

    Raises:
        UsageError: a batch is more than the training pictures, or patches do not fill the picture.
    """
    n = len(pictures.splits["train"])
    if batch_size > n:
        raise UsageError(
            f"{stage}.batch_size", got=batch_size, expected=f"at most the {n} training pictures"
        )
    if opened.image_size % opened.patch_size:
        raise UsageError(
            f"{stage}.image_size",
            got=opened.image_size,
            expected=f"a multiple of the patch, {opened.patch_size}",
        )


def batches(
    settings: Settings,
    pictures: Labelled,
    make: Callable[[tuple[int, int]], Any],
    rt: Runtime,
    *,
    start: int,
    steps: int,
) -> Iterator[Any]:
    """Yield this rank's training batches from update `start` to `steps`.

    Args:
        make: gives the item of a key (epoch, picture).
    """
    order = loader.EpochOrder(
        len(pictures.splits["train"]), settings.batch_size,
        seed=settings.seed, start=start, steps=steps, rank=rt.rank, world=rt.world,
    )  # fmt: skip
    return loader.load(make, order, workers=settings.workers, pin=rt.is_cuda)


def require_finite(loss: float, step: int, remedy: str) -> None:
    """Raise DivergedError if a loss is not finite."""
    if not math.isfinite(loss):
        raise DivergedError(f"the loss of step {step} is {loss}", do=remedy)


def pause(
    folder: RunFolder, stop: StopFlag, moment: Moment, *, done: int, steps: int, due: bool
) -> dict[str, Any] | None:
    """Save the moment if it is due or the loop shall stop.

    Returns:
        What to report if the minutes are up, None to go on.

    Raises:
        KeyboardInterrupt: somebody asked to stop; the moment is saved.
    """
    rt = folder.runtime
    stopping = rt.any(stop.requested)
    if stopping or due:
        folder.save(done, moment.tensors(), moment.state())
    if stopping and rt.any(stop.signalled):
        raise KeyboardInterrupt
    if stopping and done < steps:
        console.note(f"stopped after {done} of {steps} steps; run it again")
        return folder.unfinished(done, steps)
    return None
