"""One process at a time in a folder of this machine, by a lock on a file in it (`filelock`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from synclr_cli.data import storage
from synclr_cli.errors import UsageError

IN_USE = "already in use by another process"


def lock(
    path: Path,
    *,
    do: str = "wait for it, or choose another --out",
    wait: float = 0,
    what: Path | None = None,
) -> filelock.BaseFileLock:
    """Return a lock on a file of this machine that this process holds until it ends or `release`s.

    Whoever holds it may remove the file: who waited for it then locks the next one of that name.

    Args:
        do: what the error says to do if another process holds it.
        what: what is locked; by default the file's folder.
        wait: seconds to wait for another process before that.

    Raises:
        UsageError: another process holds it.
    """
    with storage.disk_errors(path):
        storage.make_folder(path.parent)
        held = filelock.FileLock(path, timeout=wait)
        try:
            held.acquire(poll_interval=0.02)
        except filelock.Timeout as e:
            raise UsageError(f"{what or path.parent} is {IN_USE}", do=do) from e
    return held


@contextmanager
def locked(path: Path, *, wait: float = 0, what: Path | None = None) -> Iterator[None]:
    """Keep every other process out of a block by a file that is there meanwhile.

    Where nothing comes of the block, the file's folder is not left there either. A lock at a URI
    keeps nobody out.

    Args:
        wait: seconds to wait for another process to leave it.
        what: what is locked, for the error; by default the file's folder.

    Raises:
        UsageError: another process is in it.
    """
    if not storage.is_local(path):
        yield
        return
    new = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    held = lock(path, wait=wait, what=what)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        held.release()
        with suppress(OSError):  # it holds something
            for folder in new:
                folder.rmdir()


def is_locked(path: Path) -> bool:
    """Return whether another process holds a lock file; one that nobody holds is removed."""
    try:
        held = lock(path, do="")
    except UsageError:
        return True
    path.unlink(missing_ok=True)
    held.release()
    return False


def name_of(number: str, jobs: str) -> str:
    """Return the name of the lock of job `number` of so many that share a folder."""
    return f".lock-{number}-of-{jobs}"


def require_alone(folder: Path, number: str, jobs: str) -> None:
    """Refuse to work beside jobs that share the folder otherwise; remove stale locks.

    Raises:
        UsageError: there are some.
    """
    for name in remove_stale(folder, but=name_of(number, jobs)):
        theirs = name.rpartition("-")[2]
        if theirs != jobs:
            raise UsageError(
                f"{folder} is {IN_USE}",
                got=f"--shard {number}/{jobs}",
                expected=f"a shard of {theirs} like its own",
                do="wait for it, or choose another --out",
            )


def remove_stale(folder: Path, but: str = "") -> list[str]:
    """Remove the locks of killed jobs; return the names of those that other processes hold."""
    if not storage.is_local(folder):
        return []
    others = (path for path in folder.glob(name_of("*", "*")) if path.name != but)
    return [path.name for path in others if is_locked(path)]
