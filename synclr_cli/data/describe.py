"""What is this file: schema, rows, settings, and the chain of provenance back to the word list."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synclr_cli.data import artifacts, exports, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.errors import DataError, UsageError


@dataclass(frozen=True)
class Description:
    """What an artifact is and where it came from."""

    path: Path
    kind: str  # a schema; "run", "checkpoint": their folders; "part", "record": a file of one
    header: Header
    facts: dict[str, Any] = field(default_factory=dict)  # rows, sizes, numbers
    details: list[tuple[str, str]] = field(default_factory=list)  # more rows, for a terminal only

    def chain(self) -> list[str]:
        """Return one line per ancestor, the artifact itself first, the word list last."""
        return chain_of(self.path.name, json.loads(self.header.json()))

    def json(self) -> dict[str, Any]:
        """Return the description as one JSON object."""
        return {
            "path": str(self.path),
            "schema": f"{self.header.schema}/{self.header.version}",
            **self.facts,
            "engine": self.header.engine,
            "revision": self.header.revision,
            "seed": self.header.seed,
            "made_by": self.header.made_by,
            "config": dict(self.header.config),
            "chain": self.chain(),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the description as (name, value) rows for a terminal."""
        full = self.json()
        config = ", ".join(f"{k} = {v}" for k, v in full.pop("config").items())
        chain = full.pop("chain")
        full.pop("coverage", None)  # its rows are among the details
        rows = [(name, _short(value)) for name, value in full.items() if value not in ("", None)]
        return [*rows, *self.details, ("config", config), ("made from", "\n".join(chain[1:]))]


def describe(path: Path) -> Description:
    """Describe any file or folder that says what it is.

    Raises:
        DataError: it is none of these.
    """
    from synclr_cli.data import manifest  # it imports pyarrow

    if path.is_dir():
        if (header := manifest.read_header(path)) is not None:
            return _parts(path, header)
        if (path / "report.json").is_file():
            return _record(path / "report.json")
        if (path / "run.json").is_file() or (path / "backbone.safetensors").is_file():
            return _run(path)
        if parts := sorted(path.glob("part-*.parquet")):
            return _unfinished(path, parts)
        if (path / "state.json").is_file():
            return _checkpoint(path)
        if (path / exports.EXPORT_FILE).is_file():
            return _record(path / exports.EXPORT_FILE)
        if any(path.glob("*/report.json")):
            raise DataError(
                f"{path} holds several reports", do=f"see them with synclr compare {path}"
            )
        raise DataError(f"{path} is not a folder that synclr made")
    if not path.is_file():
        raise DataError(f"no file {path}")
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".safetensors":
        header = artifacts.tensors_header(path)
        return Description(path, header.schema, header, _size(path) | dict(header.facts or {}))
    if path.suffix == ".json":
        return _record(path)
    raise DataError(
        f"{path}", got=path.suffix or "no suffix", expected=".parquet .safetensors .json"
    )


def report_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a report as (name, value) rows for a terminal, without nested details."""
    rows = [
        (name, _short(value))
        for name, value in report.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    if interval := report.get("interval"):
        rows.append(("interval", " to ".join(f"{bound:.1f}" for bound in interval)))
    for name in ("backbone", "data"):
        if isinstance(known := report.get(name), Mapping) and "name" in known:
            rows.append((name, str(known["name"])))
    return rows


def verify(description: Description) -> None:
    """Compare the bytes of all parts of a folder with their digests, and note that they agree.

    Raises:
        UsageError: it is not a folder of parts.
        DataError: it is not finished, or a part is damaged.
    """
    from synclr_cli.data import manifest  # it imports pyarrow

    path, schema = description.path, description.header.schema
    if manifest.read_header(path) is None:
        raise UsageError(
            "--verify", got=f"a {description.kind}", expected="a folder of captions or images"
        )
    folders = [path, *(p.parent for p in path.glob(f"_*/{manifest.MANIFEST}"))]
    for folder in folders:
        header = manifest.read_header(folder)
        manifest.open_dataset(folder, header.schema if header else schema).verify()
    description.facts["verified"] = True


def _parts(path: Path, header: Header) -> Description:
    """Describe a folder of parts, finished or not."""
    from synclr_cli.data import manifest  # it imports pyarrow

    if not (path / manifest.MANIFEST).is_file():
        parts = sum(map(manifest.is_part, storage.sizes(path)))
        return Description(path, "part", header, {"finished": False, "parts": parts})
    opened = manifest.open_dataset(path, header.schema)
    facts: dict[str, Any] = {
        "parts": opened.parts.num_rows,
        "rows": opened.rows,
        "bytes": opened.bytes,
        "digest": opened.digest,
        **opened.facts,
    }
    if header.schema == "captions":
        facts["first"] = _first_captions(opened.paths()[0])
    return Description(path, header.schema, header, facts)


def _first_captions(path: Path) -> list[str]:
    with artifacts.readable(path), storage.parquet(path) as file:
        first = next(file.iter_batches(3, columns=["caption"]), None)
        return list(map(str, first["caption"].to_pylist())) if first is not None else []


def _parquet(path: Path) -> Description:
    file, header = artifacts.open_any_parquet(path)
    facts: dict[str, Any] = {"rows": file.metadata.num_rows, **_size(path)}
    facts["columns"] = file.schema_arrow.names
    if header.schema == "captions":
        facts["first"] = _first_captions(path)
    kind = "part" if header.schema in ("captions", "rejects", "images") else header.schema
    return Description(path, kind, header, facts)


def _unfinished(path: Path, parts: list[Path]) -> Description:
    header = artifacts.open_any_parquet(parts[0])[1]
    return Description(path, "part", header, {"finished": False, "parts": len(parts)})


def _run(path: Path) -> Description:
    weights = path / "backbone.safetensors"
    facts: dict[str, Any] = {"finished": weights.is_file()}
    if weights.is_file():
        header = artifacts.tensors_header(weights)
        facts |= dict(header.facts or {})
    else:
        header = Header.parse(json.dumps(storage.read_json(path / "run.json")), path / "run.json")
        if header.schema == "report":
            return Description(path, "evaluation", header, facts)
    checkpoints = sorted(p.name for p in path.glob("checkpoints/step-*"))
    facts["checkpoints"] = checkpoints
    if lines := storage.read_lines(path / "metrics.jsonl"):
        facts["last"] = lines[-1]
    for name in ("damaged", "skipped"):  # pictures, steps
        if lines := storage.read_lines(path / f"{name}.jsonl"):
            facts[name] = len(lines)
    return Description(path, "run", header, facts)


def _checkpoint(path: Path) -> Description:
    state = _record(path / "state.json")
    facts = state.facts | {"tensors": sorted(p.stem for p in path.glob("*.safetensors"))}
    return Description(path, "checkpoint", state.header, facts)


def _record(path: Path) -> Description:
    """Describe a JSON file with a header inside (report, manifest, state), or that is one (run)."""
    record = storage.read_json(path)
    told = record.get("header", record)
    if not isinstance(told, dict) or not isinstance(told.get("schema"), str):
        raise DataError(f"{path} is not a file that synclr made")
    header = Header.parse(json.dumps(told), path)
    rest = {} if told is record else record
    facts = {k: v for k, v in rest.items() if isinstance(v, str | int | float)}
    return Description(path, "record", header, facts)


def _size(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "digest": storage.digest(path)}


def chain_of(name: str, header: Mapping[str, Any] | None) -> list[str]:
    """Return one line for an artifact and each of its ancestors, the artifact itself first."""
    if header is None:
        return [name]
    engine = f" by {header['engine']}" if header.get("engine") else ""
    lines = [f"{name}: {header['schema']}{engine}, seed {header['seed']}"]
    for ancestor in header.get("parents", ()):
        first, *rest = chain_of(ancestor["name"], ancestor.get("header"))
        lines += [f"  {first} ({ancestor['digest'][:19]})", *(f"  {line}" for line in rest)]
    return lines


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    if isinstance(value, list):
        return (
            "\n".join(str(v) for v in value)
            if any(" " in str(v) for v in value)
            else ", ".join(map(str, value))
        )
    return str(value)
