"""What an images folder tells of its parts and of the whole, and what was left out of it.

    part: rows, refused views, captions set aside -> facts of the part -> facts of the whole
    _rejected/part-00042.jsonl   one JSON object a line: {"what": ..., "caption_id": ..., ...}

A part of which nothing was left out has no file in `_rejected/`. A file is written before its part,
so that a part which is there has said what it lacks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from synclr_cli import console
from synclr_cli.data import storage
from synclr_cli.data.manifest import PartFacts, part_name

REJECTED = "_rejected"
VIEW, CAPTION = "rejected view", "caption set aside"  # what an entry tells of

Entries = Sequence[Mapping[str, Any]]


def of_part(rows: pa.Table, views: Entries, captions: Entries) -> dict[str, Any]:
    """Return the facts of a part.

    Args:
        rows: of the images schema.
        views: refused views, each with a `reason`.
        captions: captions that were set aside.
    """
    sides = [pc.min(rows[side]).as_py() for side in ("width", "height")]
    return {
        "smallest_side": min(sides) if len(rows) else None,  # of an image, pixels
        "masks": bool(len(rows)) and rows["mask"].null_count == 0,
        "rejected": dict(Counter(view["reason"].split(" of ")[0] for view in views)),
        "set_aside": len(captions),
    }


def of_whole(parts: Sequence[PartFacts], **facts: Any) -> dict[str, Any]:
    """Return the facts of a folder from those of its parts, with some of its maker's."""
    reasons: Counter[str] = Counter()
    for part in parts:
        reasons.update(part.facts["rejected"])
    sides = [part.facts["smallest_side"] for part in parts]
    whole = {
        **facts,
        "smallest_side": min((side for side in sides if side is not None), default=None),
        "rejected": dict(sorted(reasons.items())),
        "set_aside": sum(part.facts["set_aside"] for part in parts),
    }
    if reasons or whole["set_aside"]:
        console.note(
            f"{reasons.total()} views rejected, {whole['set_aside']} captions set aside:"
            f" see {REJECTED}/"
        )
    return whole


def write_rejected(folder: Path, index: int, views: Entries, captions: Entries) -> None:
    """Write what was left out of part `index`; `folder` is where the part is made."""
    path = _rejected_path(folder, index)
    entries = [*({"what": VIEW, **e} for e in views), *({"what": CAPTION, **e} for e in captions)]
    if entries:
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        with storage.atomic_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    else:
        storage.remove(path)


def rejected_views(folder: Path, index: int) -> list[dict[str, Any]]:
    """Return the views that were refused of part `index`."""
    entries = storage.read_lines(_rejected_path(folder, index))
    return [{k: v for k, v in e.items() if k != "what"} for e in entries if e["what"] == VIEW]


def read_rejected(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield all that was left out of a folder, in the order of its parts."""
    for path in sorted((folder / REJECTED).glob("*.jsonl"), key=lambda p: p.name):
        yield from storage.read_lines(path)


def _rejected_path(folder: Path, index: int) -> Path:
    return folder / REJECTED / part_name(index).replace(".parquet", ".jsonl")
