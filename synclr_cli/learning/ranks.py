"""Who failed among the ranks of a run, and what the others do then.

    a rank's error --Watch.fail--> the group's store --Watch, every second--> the other ranks end

The store is the one that the ranks met at: key-value pairs beside the collectives, which are of no
use once a rank is gone. The first rank to fail says why; the others end quietly, with its exit
code. One that is stuck in a collective or in a long computation is ended from outside.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Protocol

from synclr_cli import console
from synclr_cli.errors import EngineError, SynclrError

POLL_S = 0.5  # between looks at the store
MEETING_S = 1800.0  # that ranks wait for each other at the start
GRACE_S = 3.0  # that a rank has to end by itself once another failed
_FAILED, _LEFT = "synclr/failed", "synclr/left"


class Store(Protocol):
    """What is used of the key-value store that torch's ranks meet at."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def add(self, key: str, amount: int) -> int: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...
    def wait(self, keys: list[str], timeout: timedelta) -> None: ...


class RankError(SynclrError):
    """Another rank failed, and said why; this one ends without a word, with its exit code."""

    speaker = False

    def __init__(self, rank: int = -1, exit_code: int = 1):
        super().__init__(f"rank {rank} failed")
        self.exit_code = exit_code


class Watch:
    """Looks for the failure of another rank, in a thread, as long as the block lasts."""

    def __init__(self, store: Store, rank: int, world: int):
        self.store, self.rank, self.world = store, rank, world
        self._over, self._results, self._claim = threading.Event(), 0, b""
        self._thread = threading.Thread(target=self._look, name="ranks", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no longer."""
        self._over.set()
        self._thread.join()

    def failed(self) -> BaseException | None:
        """Return what the failure of another rank becomes in this one, None if there is none.

        Raises:
            EngineError: the main rank is gone, and the store with it.
        """
        try:
            if not self._claim and self.store.check([_FAILED]):
                self._claim = self.store.get(
                    _FAILED
                )  # whose host may be gone when it is asked next
            return self._of(self._claim) if self._claim else None
        except (RuntimeError, OSError) as e:
            raise self._main_lost() from e

    def fail(self, e: BaseException) -> BaseException | None:
        """Tell the others of this rank's error; return what it becomes, None to leave it as it is.

        An error that another rank's failure caused becomes a quiet `RankError`; a collective that
        broke off without one, an EngineError.
        """
        broken = is_broken(e)
        try:
            if broken or isinstance(e, RankError | KeyboardInterrupt):
                # Whoever failed first may still be about to say so.
                until = time.monotonic() + 2 * POLL_S
                while (first := self.failed()) is None and time.monotonic() < until:
                    time.sleep(0.05)
                if first is not None:
                    return first
            lost = _lost("a rank") if broken else None
            code = 130 if isinstance(e, KeyboardInterrupt) else getattr(lost or e, "exit_code", 1)
            claim = json.dumps({"rank": self.rank, "code": code})
            first = self._of(self.store.compare_set(_FAILED, "", claim))
        except EngineError as gone:
            return gone if broken else None
        except (RuntimeError, OSError):
            return self._main_lost() if broken else None
        own = lost or e
        if first is None and isinstance(own, SynclrError):
            own.speaker = True
        return first or lost

    def leave(self) -> None:
        """Say that this rank is about to end; the store's host waits a little for the others."""
        try:
            left = self.store.add(_LEFT, 1)
            until = time.monotonic() + GRACE_S
            while self.rank == 0 and left < self.world and time.monotonic() < until:
                time.sleep(0.05)
                left = self.store.add(_LEFT, 0)
        except (RuntimeError, OSError):
            return

    def from_main(self, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what `make` gives on the main rank, on every rank, however long it takes.

        Raises:
            RankError: it failed there.
            EngineError: the main rank is gone.
        """
        self._results += 1
        key = f"synclr/result/{self._results}"
        if self.rank == 0:
            self.store.set(key, json.dumps(make()))
        while not self.store.check([key]):
            if (first := self.failed()) is not None:
                raise first
            time.sleep(POLL_S / 5)
        return dict(json.loads(self.store.get(key)))

    def _of(self, claim: bytes) -> BaseException | None:
        first = json.loads(claim)
        if first["rank"] == self.rank:
            return None
        if first["code"] == 130:
            return KeyboardInterrupt()
        return RankError(first["rank"], first["code"])

    def _main_lost(self) -> EngineError:
        lost = _lost("the main rank")
        lost.speaker = self.rank == 1  # nobody can be asked who speaks
        return lost

    def _look(self) -> None:
        while not self._over.wait(POLL_S):
            lost: EngineError | None = None
            try:
                first = self.failed()
            except EngineError as e:  # the main rank's process is gone
                first = lost = e
            if first is None:
                continue
            if not self._over.wait(GRACE_S):  # stuck in a collective that will never end
                if lost is not None and lost.speaker:
                    console.error(str(lost))
                os._exit(getattr(first, "exit_code", 130))
            return


def meet(store: Store, rank: int, world: int) -> str:
    """Return a name for this meeting of all ranks: the same on each, and never used before.

    torchrun keeps one store over its restarts. Keys that ranks of before left there would tell
    those of now of failures that are over, and of addresses where nobody listens any more.

    Raises:
        RuntimeError: not all ranks came, or the store is gone.
    """
    own = f"{rank}-{os.getpid()}-{time.time_ns()}"
    if rank == 0:
        store.set("synclr/meeting", own)
        keys = [f"synclr/{own}/here/{other}" for other in range(1, world)]
        store.wait(keys, timedelta(seconds=MEETING_S))
        for key in keys:
            store.set(f"{key}/seen", store.get(key).decode())
        return own
    name, until = "", time.monotonic() + MEETING_S
    while time.monotonic() < until:
        newest = store.get("synclr/meeting").decode()  # waits for the first; may be one of before
        key = f"synclr/{newest}/here/{rank}"
        if newest != name:
            name = newest
            store.set(key, own)
        elif store.check([f"{key}/seen"]) and store.get(f"{key}/seen").decode() == own:
            return name
        time.sleep(0.05)
    raise RuntimeError("the main rank did not come")


def is_broken(e: BaseException) -> bool:
    """Return whether an error is a collective that broke off, which a rank that is gone causes."""
    kinds = {kind.__name__ for kind in type(e).__mro__}
    if "DistError" in kinds:
        return True
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
    return isinstance(e, RuntimeError) and any(sign in str(e) for sign in signs)


def _lost(who: str) -> EngineError:
    return EngineError(
        f"{who} ended without a word",
        do="check for lack of memory, then run the same command again: it continues",
    )
