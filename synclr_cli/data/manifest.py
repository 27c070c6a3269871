"""What a finished folder of parts says of itself, without opening a part.

    _manifest.json   small: header, digest, totals, what the command told of the whole
    _parts.pq        a row for each part: rows, captions, first and last id, bytes, digest, facts

The list is a Parquet file (600,000 parts are some 30 MB), but of another suffix, for those who read
`folder/*.parquet`. How a folder comes to be finished is in `shards`.
"""

from __future__ import annotations

import base64
import io
import json
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synclr_cli.data import artifacts, part_layout, storage
from synclr_cli.data.artifacts import STAGE_OF, Header
from synclr_cli.errors import DataError

MANIFEST = "_manifest.json"
PARTS = "_parts.pq"
UNFINISHED = "_unfinished"  # folder of the header and of notes, while parts are made
HEADER = "header.json"  # in it
_NOTE_READERS = 32  # threads; a note at a URI is a request

_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("captions", pa.int64()),
        pa.field("first", pa.int64()),
        pa.field("last", pa.int64()),
        pa.field("fewest", pa.int32()),
        pa.field("layout", pa.binary()),
        pa.field("bytes", pa.int64()),
        pa.field("digest", pa.binary(32)),
        pa.field("facts", pa.string()),  # JSON; null for none
    ]
)


@dataclass(frozen=True)
class PartFacts:
    """What is known of a part without opening it."""

    name: str
    rows: int
    captions: int  # distinct caption ids; 0 where the schema has none
    first: int | None  # the lowest caption id
    last: int | None  # the highest
    fewest: int  # rows of a caption, at least
    layout: str  # `part_layout.encode`; "": ids without a gap, each with `fewest` rows
    bytes: int
    digest: str  # sha256:...
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the command told of it


@dataclass(frozen=True)
class Manifest:
    """A finished folder of parts: where it came from and what it holds."""

    folder: Path
    header: Header
    digest: str  # of the names and bytes of all parts
    rows: int
    captions: int
    bytes: int
    facts: Mapping[str, Any]  # what the command told of the whole
    parts: pa.Table  # a row for each part, in order; columns: fields of `PartFacts`

    def paths(self) -> list[Path]:
        """Return where the parts lie, in order."""
        return [self.folder / part_name(number) for number in range(len(self.parts))]

    def missing(self, listing: Listing) -> NDArray[np.int64]:
        """Return the numbers of the parts that a listing of the folder lacks.

        Raises:
            DataError: one that is there has another size than was written.
        """
        expected = self.parts["bytes"].to_numpy()  # [P]
        sizes = listing.sizes(len(expected))  # [P]
        for number in np.flatnonzero((sizes >= 0) & (sizes != expected))[:1].tolist():
            path = self.folder / part_name(number)
            require_size(path, int(sizes[number]), int(expected[number]), self.header)
        return np.flatnonzero(sizes < 0)

    def verify(self) -> None:
        """Compare the bytes of every part with its digest.

        Raises:
            DataError: one differs; it is named.
        """
        for part in facts_of(self.parts):
            path = self.folder / part.name
            with artifacts.readable(path):
                same = storage.digest(path) == part.digest
            if not same:
                raise damaged(path, "its bytes are not those that were written", self.header)


@dataclass(frozen=True)
class Listing:
    """What a folder holds, by one look: 16 bytes for a part, whatever the length of its name."""

    numbers: array[int]  # of the parts, in no order
    part_sizes: array[int]  # of the same, bytes
    others: dict[str, int]  # size of what is no part, by its name; -1 for a folder

    def sizes(self, total: int) -> NDArray[np.int64]:
        """Return the size of each part below `total`, -1 for one that is not there."""
        numbers = np.asarray(self.numbers, np.int64)
        own = numbers < total
        sizes = np.full(total, -1)
        sizes[numbers[own]] = np.asarray(self.part_sizes, np.int64)[own]
        return sizes


def list_folder(folder: Path) -> Listing:
    """List a folder, here or elsewhere; nothing is in it if there is none."""
    listing = Listing(array("q"), array("q"), {})
    for name, size in storage.scan(folder):
        number = number_of(name) if size >= 0 else -1
        if 0 <= number < 2**62 and part_name(number) == name:
            listing.numbers.append(number)
            listing.part_sizes.append(size)
        else:
            listing.others[name] = size
    return listing


def part_name(index: int) -> str:
    """Return the name of a part; names are in the order of their numbers.

    From 100,000 on a letter for the number of digits comes first: `part-a100000.parquet`.
    """
    digits = str(index)
    letter = chr(ord("a") + len(digits) - 6) if len(digits) > 5 else ""
    return f"part-{letter}{digits:0>5}.parquet"


def is_part(name: str) -> bool:
    """Return whether a name is of the form that parts have."""
    return name.startswith("part-") and name.endswith(".parquet")


def number_of(name: str) -> int:
    """Return the number of a part by its name, -1 for a name that no part has."""
    digits = name.removeprefix("part-").split(".", 1)[0].lstrip("abcdefghij")
    return int(digits) if digits.isdecimal() else -1


def is_of(name: str, shard: str) -> bool:
    """Return whether the part of a name is one of those that shard I/N makes: every N-th."""
    number, _, jobs = shard.partition("/")
    return (number_of(name) - int(number) + 1) % int(jobs) == 0


def remove_partials(folders: Sequence[Path], shard: str) -> None:
    """Remove what killed processes left half written of a shard's parts and notes."""
    for folder in filter(storage.is_local, folders):
        storage.remove(*(p for p in folder.glob(".part-*.partial") if is_of(p.name[1:], shard)))


def open_dataset(folder: Path, schema: str, columns: Sequence[str] | None = None) -> Manifest:
    """Open a finished folder of parts; their sizes are compared, none of them is opened.

    Args:
        columns: of the list of parts, that are needed besides their sizes; None: all.

    Raises:
        DataError: no such folder, not finished, of another schema, a part is missing or damaged.
    """
    maker = f"synclr {STAGE_OF[schema]}"
    make = f"make it with {maker}"
    if schema == "images":
        make += ", or of images of your own with synclr import"
    if folder.is_file():
        raise DataError(f"{folder} is a file", expected=f"a folder of {schema}", do=make)
    listing = list_folder(folder)
    if MANIFEST not in listing.others:
        if (count := len(listing.numbers)) or UNFINISHED in listing.others:
            raise DataError(
                f"{folder} holds {count} parts but is not finished",
                do=f"run {maker} again: it continues",
            )
        if not folder.is_dir():
            raise DataError(f"no folder {folder}", do=make)
        raise DataError(f"{folder} holds no {schema} of synclr", do=make)
    manifest = read_manifest(folder, schema, columns)
    missing = manifest.missing(listing)  # numbers
    if len(missing):
        more = f" and {len(missing) - 1} more parts" if len(missing) > 1 else ""
        raise DataError(f"{folder} lacks {part_name(missing[0])}{more}", do=f"run {maker} again")
    return manifest


def read_header(folder: Path, schema: str | None = None) -> Header | None:
    """Return the header of a folder of parts, finished or not; None if it has none.

    Raises:
        DataError: it cannot be read, or is of another schema.
    """
    header = None
    for path in (folder / MANIFEST, folder / UNFINISHED / HEADER):
        if path.is_file():
            record = storage.read_json(path)
            if "header" not in record:
                raise DataError(f"{path} lacks 'header'")
            header = Header.parse(json.dumps(record["header"]), path)
            break
    else:
        path = folder / PARTS
        if path.is_file():
            header = artifacts.open_any_parquet(path)[1]
    if header and schema and header.schema != schema:
        raise DataError(f"{path}", got=header.schema, expected=schema)
    return header


def read_manifest(folder: Path, schema: str, columns: Sequence[str] | None = None) -> Manifest:
    """Read a manifest and the list of parts beside it; which parts are there is not looked at.

    Args:
        columns: as of `open_dataset`.
    """
    path = folder / MANIFEST
    record = storage.read_json(path)
    header = read_header(folder, schema)
    assert header is not None
    parts = read_parts(folder, columns if columns is None else {*columns, "bytes"})
    try:
        if storage.digest(folder / PARTS) != record["parts_digest"]:
            raise DataError(
                f"{folder / PARTS} is not the list of parts that {path.name} was written with",
                do="copy both again from where the folder came from",
            )
        return Manifest(
            folder,
            header,
            str(record["digest"]),
            int(record["rows"]),
            int(record["captions"]),
            int(record["bytes"]),
            dict(record["facts"]),
            parts,
        )
    except (KeyError, TypeError, ValueError) as e:
        raise DataError(f"{path} lacks {e}") from e


def read_parts(folder: Path, columns: Collection[str] | None = None) -> pa.Table:
    """Read the list of parts, or some columns of it.

    Raises:
        DataError: it is damaged.
    """
    path = folder / PARTS
    schema = pa.schema([f for f in _SCHEMA if columns is None or f.name in columns])
    try:
        return storage.table(path, schema.names).select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, OSError) as e:
        raise DataError(
            f"{path} is damaged ({e})", do="copy it again, or remove the folder and make it again"
        ) from e


def names_of(parts: pa.Table) -> list[str]:
    """Return the names in a list of parts, in order."""
    return [str(name) for name in parts["name"].to_pylist()]


def facts_of(parts: pa.Table) -> Iterator[PartFacts]:
    """Yield the rows of a list of parts."""
    for row in parts.to_pylist():
        row["digest"] = f"sha256:{row['digest'].hex()}"
        row["layout"] = base64.b64encode(row["layout"] or b"").decode()
        row["facts"] = json.loads(row["facts"]) if row["facts"] else {}
        yield PartFacts(**row)


def note_name(part: str) -> str:
    """Return the name of the file that notes a part's facts until all parts are there."""
    return part.removesuffix(".parquet") + ".json"


def read_notes(folder: Path, parts: Sequence[str]) -> dict[str, PartFacts]:
    """Return the facts of these parts that are noted in a folder.

    Raises:
        DataError: a note is damaged.
    """
    notes = storage.sizes(folder)
    noted = [name for name in parts if note_name(name) in notes]

    def read(name: str) -> PartFacts:
        path = folder / note_name(name)
        try:
            return PartFacts(**storage.read_json(path))
        except (DataError, TypeError) as e:
            raise DataError(
                f"{path} is damaged ({e})",
                do=f"delete it and {name}; the same command makes both again",
            ) from e

    with ThreadPoolExecutor(_NOTE_READERS) as pool:
        return dict(zip(noted, pool.map(read, noted), strict=True))


def measure(name: str, table: pa.Table, written: Path, facts: Mapping[str, Any]) -> PartFacts:
    """Return the facts of a part that was just written to a file of this machine."""
    ids = rows = np.zeros(0, np.int64)
    if "caption_id" in table.column_names:
        ids, rows = np.unique(table["caption_id"].to_numpy(), return_counts=True)
    return PartFacts(
        name=name,
        rows=table.num_rows,
        captions=len(ids),
        first=int(ids[0]) if len(ids) else None,
        last=int(ids[-1]) if len(ids) else None,
        fewest=int(rows.min()) if len(ids) else 0,
        layout=part_layout.encode(ids, rows),
        bytes=written.stat().st_size,
        digest=storage.digest(written),
        facts=facts,
    )


def written(header: Header, parts: Sequence[PartFacts], facts: Mapping[str, Any]) -> tuple[
    bytes, dict[str, Any]
]:  # fmt: skip
    """Return the list of parts as a Parquet file, and the manifest as JSON."""
    columns: dict[str, list[Any]] = {
        name: [getattr(part, name) for part in parts] for name in _SCHEMA.names
    }
    columns["digest"] = [bytes.fromhex(d.removeprefix("sha256:")) for d in columns["digest"]]
    columns["layout"] = [base64.b64decode(text) or None for text in columns["layout"]]
    columns["facts"] = [json.dumps(f, ensure_ascii=False) if f else None for f in columns["facts"]]
    table = pa.table(columns, schema=_SCHEMA)
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({artifacts.HEADER_KEY: header.json()}),
        sink, compression="zstd", write_page_checksum=True,
    )  # fmt: skip
    listed = sink.getvalue()
    whole = sha256("".join(f"{p.name}\0{p.digest}\n" for p in parts).encode())
    return listed, {
        "header": json.loads(header.json()),
        "digest": f"sha256:{whole.hexdigest()}",
        "parts": len(parts),
        "rows": sum(p.rows for p in parts),
        "captions": sum(p.captions for p in parts),
        "bytes": sum(p.bytes for p in parts),
        "parts_digest": f"sha256:{sha256(listed).hexdigest()}",
        "facts": dict(facts),
    }


def require_size(path: Path, size: int, expected: int, header: Header) -> None:
    """Refuse a part whose size is not that which was written.

    Raises:
        DataError: it is another.
    """
    if size != expected:
        raise damaged(path, f"{size} bytes, {expected} were written", header)


def damaged(path: Path, what: str, header: Header) -> DataError:
    """Return the error for a part that is not what was written."""
    maker = "import" if header.engine.startswith("import:") else STAGE_OF[header.schema]
    return DataError(
        f"{path} is damaged ({what})",
        do=f"delete it; the same synclr {maker} command makes it again",
    )
