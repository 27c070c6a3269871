"""Files, here or elsewhere, that are whole or not there.

    place("s3://bucket/images") --> a path like any other --atomic_file--> written whole, then sent

Writes go to a new temporary name in the same folder, are synced, and renamed; what goes elsewhere
is whole on this disk before it is sent in one piece. A killed process may leave a temporary file or
folder: whoever claims the folder next removes it (`remove_partials`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synclr_cli.data import json_text
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
    except (OSError, EOFError) as e:  # some connect at once
        raise EngineError(f"{name} cannot be reached ({e})", do="check the address") from e
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
_STORE_LIBRARIES = ("aiobotocore.", "aiohttp.", "botocore.", "ftplib", "gcsfs.", "google.api_core.",
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
        if isinstance(e, ConnectionError | TimeoutError | socket.gaierror):
            raise EngineError(f"{path} cannot be reached ({e})", do="check the address") from e
        refused = _refusal(e)
        if refused is None:
            raise
        if refused.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise EngineError(
                f"no space left to write {path}",
                do="free some space, then run the same command again: it continues",
            ) from e
        if refused.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            name = refused.filename or path
            raise UsageError(f"{name} cannot be a name ({refused.strerror})") from e
        if refused.errno in (errno.EMFILE, errno.ENFILE):
            raise EngineError(
                f"too many open files ({refused.strerror})",
                do="raise the limit, as by ulimit -n 1024",
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


def _partial(path: Path) -> Path:
    """Return a new name beside `path` that no one can know beforehand."""
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.partial")


def remove_partials(folder: Path, prefix: str = "") -> None:
    """Remove what killed processes left half written in a folder; the caller holds its lock.

    Args:
        prefix: only what was to become a file or folder whose name begins so.
    """
    with disk_errors(folder):
        for partial in folder.glob(f".{prefix}*.partial"):
            remove(partial)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`; what was written there becomes `path`, or nothing does.

    Its name is random and it is made by nobody else, so that no planted link is written through and
    two processes do not meet. What goes elsewhere is written on this disk, then sent in one piece.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory(prefix="synclr-") as here, disk_errors(path):
            yield Path(here, path.name)
            make_folder(path.parent)
            there, name = _elsewhere(path)
            there.put_file(str(Path(here, path.name)), name)
        return
    partial = _partial(path)
    with disk_errors(path):
        make_folder(path.parent)
        mode = _create(partial)
        try:
            yield partial
            _finish_file(partial, mode)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder that becomes `path` when the block ends well."""
    partial = _partial(path)
    with disk_errors(path):
        make_folder(path.parent)
        partial.mkdir()
        mode = partial.stat().st_mode & 0o666
        try:
            yield partial
            for file in (entry for entry in partial.rglob("*") if entry.is_file()):
                _finish_file(file, mode)
            old = _partial(path)
            if path.exists():
                path.rename(old)
            partial.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync_folder(path.parent)


def _create(path: Path) -> int:
    """Create a file that is not there yet, and return its mode: what the umask leaves."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)


def _finish_file(path: Path, mode: int) -> None:
    """Sync a file, and give it the mode of any new one; safetensors makes its own the owner's."""
    if path.stat().st_mode & mode != mode:
        with suppress(OSError):  # a file system without modes
            path.chmod(path.stat().st_mode | mode)
    with open(path, "rb") as f:
        os.fsync(f.fileno())


def sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file in a folder by its name, -1 for a folder in it.

    One listing, here or elsewhere; {} if there is no such folder.
    """
    return dict(scan(folder))


def scan(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield what `sizes` returns, without holding it."""
    if is_local(folder):
        with suppress(FileNotFoundError), disk_errors(folder), os.scandir(folder) as entries:
            for entry in entries:
                yield entry.name, -1 if entry.is_dir() else entry.stat().st_size
        return
    there, name = _elsewhere(folder)
    with suppress(FileNotFoundError):
        for entry in there.ls(name, detail=True, refresh=True):
            if entry["name"].strip("/") != name.strip("/"):  # some stores list the folder itself
                size = -1 if entry["type"] == "directory" else int(entry["size"])
                yield entry["name"].rstrip("/").rpartition("/")[2], size


def move(source: Path, target: Path) -> None:
    """Move a file over another one, or a folder to where none is, within one place."""
    with disk_errors(target):
        if is_local(source):
            source.replace(target)
        else:
            there, name = _elsewhere(source)
            there.mv(name, _elsewhere(target)[1], recursive=there.isdir(name))


def remove(*paths: Path) -> None:
    """Remove files and folders, wherever they lie, if they are there; of a link, the link alone."""
    for path in paths:
        with disk_errors(path):
            if not is_local(path):
                there, name = _elsewhere(path)
                if there.exists(name):
                    there.rm(name, recursive=True)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


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
        value = json_text.parse(path.read_text(encoding="utf-8"))
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
    records: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, ValueError) as e:
        raise DataError(f"cannot read {path} ({e})") from e
    for line in lines:
        try:
            record = json_text.parse(line)
        except ValueError:
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


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


# To read at once of text that anybody wrote: a file of some kB may hold 100 kB in each of its rows.
ROWS_OF_ANYBODY = 1024


def parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file anywhere, whosever it is; pyarrow's errors.

    Reading a page whose checksum is not the one it was written with is an OSError.
    """
    import pyarrow.parquet as pq

    if is_local(path):
        return pq.ParquetFile(path, page_checksum_verification=True)
    there, name = _elsewhere(path)
    return pq.ParquetFile(name, filesystem=there, pre_buffer=True, page_checksum_verification=True)


def table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file anywhere, whole or some columns of it; pyarrow's errors."""
    with parquet(path) as file:
        return file.read(columns=None if columns is None else list(columns))
