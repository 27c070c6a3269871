"""When a loop shall save its work and stop: a signal, or the minutes are up."""

from __future__ import annotations

import signal
import time
from types import FrameType


class StopFlag:
    """Asks a loop to stop cleanly: on SIGTERM or Ctrl-C, or when the minutes are up.

    A second signal interrupts at once. Use as a context manager around the loop.
    """

    def __init__(self, after_minutes: float = 0.0):
        self._deadline = time.monotonic() + after_minutes * 60 if after_minutes else None
        self.signalled = False
        self._before: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Return whether to save and stop now."""
        return self.signalled or self.out_of_time

    @property
    def out_of_time(self) -> bool:
        """Return whether the minutes given are up."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def __enter__(self) -> StopFlag:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread: its owner handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True
