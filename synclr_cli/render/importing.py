"""Pictures made elsewhere -> images/1: for those who have StableRep, SynthCLIP or other sets.

    CSV of (path, caption) + one folder per view | webdataset tars | Parquet with repeated captions
    -> where each caption's pictures lie -> parts of whole captions -> manifest.json

The bytes of a picture are taken over as they are. Pictures of one caption text are its views, in
the order they are found. What does not decode, and captions with fewer than two pictures, are
listed in rejected.jsonl; nothing is dropped silently.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from synclr_cli import artifacts, console
from synclr_cli.errors import DataError
from synclr_cli.render import manifest

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
CAPTION_COLUMNS = ("caption", "text", "prompt", "captions", "sentence")
CAPTIONS_PER_GROUP = 16
UNKNOWN_SEED = -1  # of a view whose starting noise nobody wrote down


@dataclass(frozen=True)
class Place:
    """Where one picture's bytes lie."""

    path: Path
    first: int = -1  # byte in a tar, or row group of a Parquet file; -1: the whole file
    second: int = 0  # length in a tar, or row of the group


@dataclass
class Caption:
    """One caption and its pictures."""

    text: str
    concept: str
    places: list[Place] = field(default_factory=list)


def run(
    source: Path,
    out: Path,
    *,
    roots: Sequence[Path] = (),
    captions_per_part: int = 256,
    least_views: int = 2,
    overwrite: bool = False,
) -> Path:
    """Import a set of pictures with captions as the images/1 folder `out`, and return it.

    Args:
        source: a .csv (path, caption), a .parquet file, a .tar, or a folder of .parquet or .tar.
        roots: with a .csv, the folders its paths are relative to, one for each view; by default the
            file's own folder, or those folders beside it that hold the first path.
        least_views: captions with fewer pictures are set aside.

    Raises:
        DataError: the source is none of these, or holds no captioned picture.
        UsageError: `out` was imported from something else.
    """
    # --- open
    kind, files = _kind_of(source)
    header = artifacts.Header(
        schema="images",
        config={"captions_per_part": captions_per_part, "least_views": least_views},
        engine=f"import:{kind}",
        parents=(artifacts.parent(source, None, _digest(files)),),
    )
    parts = artifacts.Parts(out, "images", header)
    if overwrite:
        manifest.clear(parts)
    elif (out / manifest.MANIFEST).is_file():
        artifacts.require_same("render", artifacts.open_images(out)[1], header, out)
        return out
    captions = _gather(kind, files, roots)
    if not captions:
        raise DataError(f"{source} holds no picture with a caption")

    # --- loop
    total = -(-len(captions) // captions_per_part)
    todo = parts.missing(total)
    read = _Reader()
    fewest = []
    with console.progress("import", total, done=total - len(todo), unit="parts") as meter:
        for index in todo:
            start = index * captions_per_part
            table, facts = _part(captions[start : start + captions_per_part], start, read, header)
            artifacts.write_parquet(
                parts.path(index),
                "images",
                replace(header, facts=facts),
                [table],
                rows_per_group=CAPTIONS_PER_GROUP * max(facts["most_views"], 1),
            )
            meter.advance()

    # --- write
    for index in range(total):
        facts = artifacts.open_parquet(parts.path(index), "images")[1].facts or {}
        fewest.append(facts.get("fewest_views", 0))
    views = min((n for n in fewest if n), default=0)
    manifest.write(parts, total, captions=source.name, views=views, classes=[])
    return out


def _kind_of(source: Path) -> tuple[str, list[Path]]:
    """Return what a source is, and its files."""
    if source.is_file():
        kind = source.suffix.lower().removeprefix(".")
        if kind in ("csv", "tar", "parquet"):
            return kind, [source]
    elif source.is_dir():
        for kind in ("tar", "parquet"):
            files = sorted(source.rglob(f"*.{kind}"))
            if files:
                return kind, files
    else:
        raise DataError(f"no file or folder {source}")
    raise DataError(
        f"{source} cannot be imported",
        expected="a .csv of (path, caption), a .parquet, a .tar, or a folder of .parquet or .tar",
    )


def _digest(files: list[Path]) -> str:
    """Return a digest of a small source's bytes, or of a large one's names and sizes."""
    if len(files) == 1 and files[0].stat().st_size < 1 << 30:
        return artifacts.digest(files[0])
    listed = "".join(f"{f.name}\0{f.stat().st_size}\n" for f in files)
    return f"sha256:{sha256(listed.encode()).hexdigest()}"


# ------------------------------------------------------------------------------ what is there


def _gather(kind: str, files: list[Path], roots: Sequence[Path]) -> list[Caption]:
    """Return the captions in the order of their first picture."""
    if kind == "csv":
        return list(_from_csv(files[0], roots))
    gathered: dict[str, Caption] = {}
    for text, concept, place in (_from_tars if kind == "tar" else _from_parquet)(files):
        gathered.setdefault(text, Caption(text, concept)).places.append(place)
    return list(gathered.values())


def _from_csv(path: Path, roots: Sequence[Path]) -> Iterator[Caption]:
    """Yield a caption per row; its path under each root is one of its views."""
    csv.field_size_limit(1 << 20)
    try:
        with open(path, newline="", encoding="utf-8") as f:
            rows = [
                (row[0].strip(), row[1].strip())
                for row in csv.reader(f)
                if len(row) >= 2 and row[0].strip().lower().endswith(PICTURES)
            ]
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path} is no UTF-8 CSV file ({e})") from e
    if not rows:
        return
    found = list(roots) or _roots_beside(path, rows[0][0])
    missing = [r for r in found if not r.is_dir()]
    if missing:
        raise DataError(f"no folder {missing[0]}")
    if not found:
        raise DataError(
            f"{path}: no folder beside it holds {rows[0][0]}",
            do="name the folders of the views",
        )
    for name, text in rows:
        yield Caption(text, "", [Place(root / name) for root in found])


def _roots_beside(path: Path, name: str) -> list[Path]:
    beside = [d for d in sorted(path.parent.iterdir()) if d.is_dir() and (d / name).is_file()]
    return [path.parent] if (path.parent / name).is_file() else beside


def _from_tars(files: list[Path]) -> Iterator[tuple[str, str, Place]]:
    """Yield the samples of webdataset tars: members of one stem, caption in .txt or .json."""
    for path in files:
        samples: dict[str, dict[str, tarfile.TarInfo]] = {}
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile():
                        stem, dot, kind = member.name.rpartition(".")
                        samples.setdefault(stem, {})[dot + kind.lower()] = member
                for parts in samples.values():
                    picture = next((parts[k] for k in PICTURES if k in parts), None)
                    words = _words(tar, parts)
                    if picture and words:
                        yield *words, Place(path, picture.offset_data, picture.size)
        except tarfile.TarError as e:
            raise DataError(f"{path} is no tar file, or a truncated one ({e})") from e


def _words(tar: tarfile.TarFile, parts: dict[str, tarfile.TarInfo]) -> tuple[str, str] | None:
    """Return a sample's caption and concept."""
    for kind in (".txt", ".caption"):
        if kind in parts and (file := tar.extractfile(parts[kind])):
            return file.read().decode("utf-8", "replace").strip(), ""
    if ".json" in parts and (file := tar.extractfile(parts[".json"])):
        try:
            values = json.loads(file.read())
        except ValueError:
            return None
        for name in CAPTION_COLUMNS:
            if isinstance(values, dict) and isinstance(values.get(name), str):
                return values[name].strip(), str(values.get("concept") or "")
    return None


def _from_parquet(files: list[Path]) -> Iterator[tuple[str, str, Place]]:
    """Yield the rows of Parquet files in the Hugging Face layout."""
    for path in files:
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as e:
            raise DataError(f"{path} is no Parquet file, or a truncated one ({e})") from e
        names = file.schema_arrow.names
        column = next((c for c in CAPTION_COLUMNS if c in names), None)
        if column is None or "image" not in names:
            raise DataError(
                f"{path}: columns",
                got=", ".join(names),
                expected="image and one of " + ", ".join(CAPTION_COLUMNS),
            )
        wanted = [column, *(["concept"] if "concept" in names else [])]
        for group in range(file.num_row_groups):
            for i, row in enumerate(file.read_row_group(group, wanted).to_pylist()):
                text = row[column][0] if isinstance(row[column], list) else row[column]
                if text:
                    yield str(text).strip(), str(row.get("concept") or ""), Place(path, group, i)


# ----------------------------------------------------------------------------------- reading


class _Reader:
    """Reads pictures' bytes; keeps the last row group, where neighbours mostly lie."""

    def __init__(self) -> None:
        self._group: tuple[Path, int] | None = None
        self._rows: list[dict[str, Any]] = []

    def __call__(self, place: Place) -> bytes:
        if place.path.suffix.lower() == ".parquet":
            return self._from_group(place)
        with open(place.path, "rb") as f:
            if place.first < 0:
                return f.read()
            f.seek(place.first)
            return f.read(place.second)

    def _from_group(self, place: Place) -> bytes:
        if self._group != (place.path, place.first):
            table = pq.ParquetFile(place.path).read_row_group(place.first, ["image"])
            self._rows = table["image"].to_pylist()
            self._group = (place.path, place.first)
        cell = self._rows[place.second]
        if isinstance(cell, bytes):
            return cell
        if cell and cell.get("bytes"):
            return bytes(cell["bytes"])
        path = place.path.parent / str((cell or {}).get("path") or "")
        return path.read_bytes() if path.is_file() else b""


def _part(
    captions: list[Caption], start: int, read: _Reader, header: artifacts.Header
) -> tuple[pa.Table, dict[str, Any]]:
    """Return a part's rows, and what its header lists as left out."""
    least = header.config["least_views"]
    records, rejected, set_aside, counts = [], [], [], []
    for caption_id, caption in enumerate(captions, start):
        kept = []
        for view, place in enumerate(caption.places):
            try:
                data = read(place)
                with Image.open(io.BytesIO(data)) as picture:
                    size = picture.size
                    picture.verify()
            except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as e:
                missing = isinstance(e, FileNotFoundError)
                reason = "missing" if missing else "does not decode"
                rejected.append({"caption_id": caption_id, "view": view, "reason": reason,
                                 "path": place.path.name})  # fmt: skip
                continue
            kept.append(
                {
                    "caption_id": caption_id,
                    "view": view,
                    "caption": caption.text,
                    "concept": caption.concept,
                    "image": {"bytes": data, "path": None},
                    "width": size[0],
                    "height": size[1],
                    "seed": UNKNOWN_SEED,
                    "mask": None,
                    "score": None,
                }
            )
        if len(kept) < least:
            set_aside.append(
                {"caption_id": caption_id, "caption": caption.text, "views": len(kept)}
            )
            continue
        records += kept
        counts.append(len(kept))
    facts = {
        "rejected": rejected,
        "set_aside": set_aside,
        "fewest_views": min(counts, default=0),
        "most_views": max(counts, default=0),
    }
    return pa.Table.from_pylist(records, schema=artifacts.arrow_schema("images")), facts
