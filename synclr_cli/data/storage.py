"""Files, here or elsewhere, that are whole or not there.

    place("s3://bucket/images") --> a path like any other --atomic_file--> written whole, then sent

Writes go to a temporary name in the same folder, are synced, and renamed; what goes elsewhere is
whole on this disk before it is sent in one piece.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from synclr_cli.errors import DataError, EngineError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def place(name: str | Path) -> Path:
    """Return a path, of this machine or (`s3://`, `gs://`, `hf://` ...) of anywhere fsspec reaches.

    What is returned for a URI is no `pathlib.Path`, but has its methods.

    Raises:
        UsageError: no such protocol.
        EngineError: the package that speaks it is not installed.
    """
    if "://" not in str(name):
        return Path(name)
    from upath import UPath

    try:
        path = UPath(name)
        _elsewhere(path)  # makes the file system: this is where a missing package shows
    except ValueError as e:
        raise UsageError(
            f"{name}: no such kind of place ({e})", do="use a path, s3://, gs:// or hf://"
        ) from e
    except ImportError as e:
        raise EngineError(f"{name} needs a package that is not installed ({e})") from e
    return path  # type: ignore[return-value]


def here(name: str | Path) -> Path:
    """Return a path of this machine.

    Raises:
        UsageError: it is a URI.
    """
    if "://" in str(name):
        raise UsageError(
            f"--out {name}", expected="a folder of this machine", do="copy it there afterwards"
        )
    return Path(name)


def is_local(path: Path) -> bool:
    """Return whether a path is on this machine's file system."""
    return isinstance(path, Path)


def resolved(path: Path) -> Path:
    """Return a path of this machine as it is written from the root on; a URI as it is."""
    return path.resolve() if is_local(path) else path


def _elsewhere(path: Any) -> tuple[Any, str]:
    """Return the fsspec file system of a path that is not local, and its name there."""
    # A path keeps the file system of the process that it was made in. S3's and GCS's refuse to work
    # in a fork of it, such as a loader process; fsspec makes one for each process, and keeps it.
    made_here = type(path)(str(path), protocol=path.protocol, **path.storage_options)
    return made_here.fs, made_here.path


# Whose errors are a store's that refuses or is not there; few of them are an OSError.
_STORE_LIBRARIES = ("aiobotocore.", "aiohttp.", "botocore.", "gcsfs.", "google.api_core.",
                    "google.auth.", "google.cloud.", "huggingface_hub.")  # fmt: skip


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk or a store at a URI refuses into one line."""
    try:
        yield
    except Exception as e:
        if type(e).__module__.startswith(_STORE_LIBRARIES):
            raise EngineError(
                f"the store cannot be used ({type(e).__name__}: {e})",
                do="check its address and your credentials, then run the same command again",
            ) from e
        refused = _refusal(e)
        if refused is None:
            raise
        if refused.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise EngineError(
                f"no space left to write {path}",
                do="free some space, then run the same command again: it continues",
            ) from e
        if refused.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(f"cannot write {path} ({refused.strerror})") from e
        if refused.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise UsageError(
                f"cannot write {path} ({refused.strerror})", do="choose another --out"
            ) from e
        raise


def _refusal(e: Exception) -> OSError | None:
    """Return what the system refused, if it did; safetensors has an error of its own for it."""
    if isinstance(e, OSError):
        return e
    number = re.search(r"os error (\d+)", str(e))
    if type(e).__name__ != "SafetensorError" or number is None:
        return None
    return OSError(int(number[1]), os.strerror(int(number[1])))


# What a new file may be is asked for once: the question changes it for all threads.
_MASKED = os.umask(0o077)
os.umask(_MASKED)


def _open_to_all(file: Path) -> None:
    """Give a file the mode that a new one has; safetensors makes its files the owner's alone."""
    mode = file.stat().st_mode
    if mode | (0o666 & ~_MASKED) != mode:
        with suppress(OSError):  # a file system without modes
            file.chmod(mode | (0o666 & ~_MASKED))


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there.

    Raises:
        UsageError: there can be none, as in /proc or on a drive that is gone.
    """
    with disk_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as e:
            raise UsageError(
                f"cannot make the folder {path} ({e.strerror})", do="choose another --out"
            ) from e


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; what was written there becomes `path`, or nothing does.

    The temporary name is fixed, so what a killed process left is overwritten by the next. What goes
    elsewhere is written on this disk, then sent in one piece.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory(prefix="synclr-") as here, disk_errors(path):
            yield Path(here, path.name)
            make_folder(path.parent)
            there, name = _elsewhere(path)
            there.put_file(str(Path(here, path.name)), name)
        return
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        make_folder(path.parent)
        try:
            yield partial
            _open_to_all(partial)
            with open(partial, "rb") as f:
                os.fsync(f.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder that becomes `path` when the block ends well."""
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(path.parent)
        partial.mkdir()
        try:
            yield partial
            for file in (found for found in partial.rglob("*") if found.is_file()):
                _open_to_all(file)
                with open(file, "rb") as f:
                    os.fsync(f.fileno())
            if path.exists():
                shutil.rmtree(path)
            partial.replace(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync_folder(path.parent)


def lock(path: Path, *, do: str) -> IO[str] | None:
    """Return a file that this process alone has locked, until it is closed or the process ends.

    None where the system or the file system has no locks. A process that was forked from this one
    does not hold it.

    Raises:
        UsageError: another process holds it; `do` says what to do then.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    with disk_errors(path):
        for _ in range(9):
            make_folder(path.parent)
            try:
                file = open(path, "a", encoding="utf-8")  # noqa: SIM115
            except FileNotFoundError:  # whoever held it removed the folder just now
                continue
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                file.close()
                if e.errno in (errno.EACCES, errno.EAGAIN):
                    raise UsageError(f"another synclr works in {path.parent}", do=do) from e
                path.unlink(missing_ok=True)
                return None
            # Whoever held it may have removed the file since it was opened here.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            file.close()
    return None  # a file system whose files change their numbers


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process out of a block by a file that is there meanwhile.

    Where nothing comes of the block, the file's folder is not left there either. A lock at a URI
    keeps nobody out.

    Raises:
        UsageError: another process is in it.
    """
    if not is_local(path):
        yield
        return
    new = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    file = lock(path, do="wait for it, or choose another --out")
    try:
        yield
    finally:
        if file:
            with suppress(OSError):
                path.unlink()
            file.close()
        with suppress(OSError):  # it holds something
            for folder in new:
                folder.rmdir()


def is_locked(path: Path) -> bool:
    """Return whether another process holds a lock file that is there."""
    try:
        file = lock(path, do="")
    except UsageError:
        return True
    if file:
        file.close()
    return False


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(
            json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that `write_json` wrote.

    Raises:
        DataError: it is not there or not JSON.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise DataError(f"cannot read {path} ({e})") from e
    if not isinstance(value, dict):
        raise DataError(f"{path}", got=type(value).__name__, expected="a JSON object")
    return value


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one record to a .jsonl log; non-finite numbers become null."""
    clean = {
        k: (None if isinstance(v, float) and (v != v or v in (float("inf"), float("-inf"))) else v)
        for k, v in value.items()
    }
    with disk_errors(path), open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(clean) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole records of a .jsonl log; the last may be one that a killed process began.

    Raises:
        DataError: it is there and cannot be read.
    """
    found: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, ValueError) as e:
        raise DataError(f"cannot read {path} ({e})") from e
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """Return `sha256:...` of a file's bytes; of a folder, over its files' names and digests."""
    if path.is_dir():
        total = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path)):
            total.update(f"{file.relative_to(path)}\0{digest(file)}\n".encode())
        return f"sha256:{total.hexdigest()}"
    with path.open("rb") as f:
        return f"sha256:{hashlib.file_digest(f, 'sha256').hexdigest()}"


def short_digest(file: Path) -> str:
    """Return `sha256:` and the first 16 digits of a file's digest, for people to read."""
    return digest(file)[: len("sha256:") + 16]


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file anywhere, whosever it is; pyarrow's errors."""
    import pyarrow.parquet as pq

    if is_local(path):
        return pq.ParquetFile(path)
    there, name = _elsewhere(path)
    return pq.ParquetFile(name, filesystem=there, pre_buffer=True)


def table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file anywhere, whole or some columns of it; pyarrow's errors."""
    with parquet(path) as file:
        return file.read(columns=columns)
