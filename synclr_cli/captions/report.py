"""What a captions file covers: shares against intent, concepts missed, variety, refusals.

    captions/ (and its rejects) --report--> dict --plot--> PNG

Intended shares are recomputed from the header's config; where a concept file has gone, they are
absent. Bounds are Wilson's 95 % interval of the realised share.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from synclr_cli.captions import concepts, quality
from synclr_cli.captions.generate import FALLBACK
from synclr_cli.captions.run import REJECTED
from synclr_cli.data import artifacts, manifest, storage
from synclr_cli.errors import DataError
from synclr_cli.learning.metrics import wilson

VARIETY_ROWS = 100_000  # distinct-n is of so many captions, the first; it falls with their number
NAMED = 20  # of the concepts never drawn, so many are named


def report(path: Path) -> dict[str, Any]:
    """Measure a folder of captions, reading it once, a batch at a time.

    Raises:
        DataError: it is not a finished folder of captions, or a part is damaged.
    """
    captions_set = manifest.open_dataset(path, "captions")
    header, rows = captions_set.header, captions_set.rows
    by: dict[str, Counter[str]] = {
        c: Counter() for c in ("source", "template", "concept", "engine")
    }
    lengths: Counter[int] = Counter()
    hashes = array("q")  # 8 bytes a caption
    variety = _Variety()
    for batch in _batches(captions_set.paths(), "captions", ["caption", *by]):
        for column, counts in by.items():
            for entry in batch[column].value_counts().to_pylist():
                counts[entry["values"]] += entry["counts"]
        captions = batch["caption"].to_pylist()
        lengths.update(len(c.split()) for c in captions)
        hashes.extend(hash(c.casefold()) for c in captions)
        variety.add(captions)
    duplicates = rows - len(np.unique(np.frombuffer(hashes, dtype=np.int64))) if rows else 0
    intended = _intended(header)
    return {
        "captions": rows,
        "engines": dict(by["engine"].most_common()),
        "sources": _shares(by["source"], rows, intended and intended["source"]),
        "templates": _shares(by["template"], rows, intended and intended["template"]),
        "concepts": _concepts(by["concept"], rows, intended),
        "distinct_1": variety.distinct(0),
        "distinct_2": variety.distinct(1),
        "variety_captions": variety.rows,
        "words": _lengths(lengths),
        "exact_duplicates": duplicates,
        "refusals": _refusals(path, rows, by["engine"][FALLBACK], header),
    }


def table(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a report as (name, value) rows for a terminal."""
    rows: list[tuple[str, str]] = [("captions", f"{measured['captions']:,}")]
    for kind in ("sources", "templates"):
        for name, share in measured[kind].items():
            intended = "" if share["intended"] is None else f" of {share['intended']:.2%} intended"
            bounds = f" [{share['low']:.2%}, {share['high']:.2%}]"
            rows.append((f"{kind[:-1]} {name}", f"{share['realised']:.2%}{bounds}{intended}"))
    concepts = measured["concepts"]
    if concepts["of"] is not None:
        rows.append(
            (
                "concepts never drawn",
                f"{concepts['never']:,} of {concepts['of']:,}"
                f" ({concepts['never_expected']:,.0f} expected)",
            )
        )
    words = measured["words"]
    rows += [
        ("words a caption", f"{words['mean']:.1f}, from {words['least']} to {words['most']}"),
        ("distinct-1, distinct-2", f"{measured['distinct_1']:.3f}, {measured['distinct_2']:.3f}"),
        ("exact duplicates", f"{measured['exact_duplicates']:,}"),
    ]
    refused = measured["refusals"]
    if refused["accepted_share"] is not None:
        rows.append(("first draws accepted", f"{refused['accepted_share']:.1%}"))
        rows += [(f"refused: {why}", f"{n:,}") for why, n in refused["reasons"].items()]
    rows.append(("written by rule", f"{refused['by_rule']:,}"))
    return rows


def plot(measured: Mapping[str, Any], path: Path) -> Path:
    """Draw a report as a PNG of four panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    (shares, templates), (lengths, refusals) = figure.subplots(2, 2)
    for axes, kind in ((shares, "sources"), (templates, "templates")):
        names = list(measured[kind])
        realised = [measured[kind][n]["realised"] for n in names]
        spread = [
            [realised[i] - measured[kind][n]["low"] for i, n in enumerate(names)],
            [measured[kind][n]["high"] - realised[i] for i, n in enumerate(names)],
        ]
        axes.barh(names, realised, xerr=spread, color="#4477aa", label="realised")
        intended = [measured[kind][n]["intended"] for n in names]
        if None not in intended:
            axes.plot(intended, names, "k|", markersize=14, label="intended")
        axes.invert_yaxis()
        axes.set_xlabel("share of captions")
        axes.set_title(kind)
        axes.legend()
    histogram = measured["words"]["histogram"]
    lengths.bar(list(histogram), list(histogram.values()), color="#4477aa")
    lengths.set_xlabel("words")
    lengths.set_ylabel("captions")
    lengths.set_title(f"length; distinct-2 {measured['distinct_2']:.3f}")
    reasons = measured["refusals"]["reasons"]
    refusals.barh(list(reasons), list(reasons.values()), height=0.6, color="#ee6677")
    refusals.set_ylim(max(len(reasons), 4) - 0.5, -0.5)  # a single reason is no wall of colour
    refusals.set_xlabel("completions")
    accepted = measured["refusals"]["accepted_share"]
    refusals.set_title(
        "refused" if accepted is None else f"refused; {accepted:.1%} accepted at once"
    )
    with storage.atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
    return path


def _batches(paths: Iterable[Path], schema: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of the rows of all parts.

    Raises:
        DataError: a part is damaged, or has a row without one of them.
    """
    for path in paths:
        file, _ = artifacts.open_parquet(path, schema)
        with file, artifacts.readable(path):
            for batch in file.iter_batches(columns=columns):
                for column in columns:
                    if batch[column].null_count:
                        raise DataError(f"{path} has a row without {column}")
                yield batch


class _Variety:
    """Distinct words and word pairs over all of them."""

    def __init__(self) -> None:
        self.rows = 0
        self._seen: tuple[set[str], set[tuple[str, str]]] = (set(), set())
        self._total = [0, 0]

    def add(self, captions: Iterable[str]) -> None:
        for caption in captions:
            if self.rows == VARIETY_ROWS:
                return
            self.rows += 1
            words = caption.casefold().split()
            pairs = list(itertools.pairwise(words))
            self._seen[0].update(words)
            self._seen[1].update(pairs)
            self._total[0] += len(words)
            self._total[1] += len(pairs)

    def distinct(self, n: int) -> float:
        return len(self._seen[n]) / max(1, self._total[n])


def _intended(header: artifacts.Header) -> dict[str, Any] | None:
    try:
        pool = concepts.read(str(header.config["concepts"]), header.config["concept_cap"])
    except DataError:  # the concept file has gone, or is not what it was
        return None
    if [d for _, d in pool.files] != [p["digest"] for p in header.parents]:
        return None
    shares = pool.shares()
    by_source: dict[str, float] = {}
    objects = 0.0
    for source, kind, share in zip(pool.sources, pool.kinds, shares.tolist(), strict=True):
        by_source[source] = by_source.get(source, 0.0) + share
        objects += share * (kind == "object")
    key = header.config
    templates = {
        "c": 1 - objects + objects * key["share_c"],
        "c_bg": objects * key["share_c_bg"],
        "c_rel": objects * key["share_c_rel"],
    }
    return {"source": by_source, "template": templates, "names": pool.names, "shares": shares}


def _shares(
    counts: Counter[str], rows: int, intended: Mapping[str, float] | None
) -> dict[str, dict[str, float | None]]:
    names = sorted({*counts, *(intended or ())}, key=lambda n: -counts[n])
    shares: dict[str, dict[str, float | None]] = {}
    for name in names:
        low, high = wilson(counts[name], rows)
        shares[name] = {
            "realised": counts[name] / max(1, rows),
            "low": low,
            "high": high,
            "intended": intended.get(name, 0.0) if intended is not None else None,
        }
    return shares


def _concepts(
    counts: Counter[str], rows: int, intended: Mapping[str, Any] | None
) -> dict[str, Any]:
    facts: dict[str, Any] = {"drawn": len(counts), "most": counts.most_common(5), "of": None}
    if intended is not None:
        shares: dict[str, float] = {}  # a name that two sources have is one concept here
        for name, share in zip(intended["names"], intended["shares"].tolist(), strict=True):
            shares[name] = shares.get(name, 0.0) + share
        never = [name for name in shares if name not in counts]
        expected = float(np.sum((1 - np.minimum(1, list(shares.values()))) ** rows))
        facts |= {
            "of": len(shares),
            "never": len(never),
            "never_expected": expected,
            "never_names": never[:NAMED],
        }
    return facts


def _lengths(lengths: Counter[int]) -> dict[str, Any]:
    total = max(1, lengths.total())
    return {
        "mean": sum(n * c for n, c in lengths.items()) / total,
        "least": min(lengths, default=0),
        "most": max(lengths, default=0),
        "histogram": dict(sorted(lengths.items())),
    }


def _refusals(path: Path, rows: int, by_rule: int, header: artifacts.Header) -> dict[str, Any]:
    facts: dict[str, Any] = {"reasons": {}, "accepted_share": None, "by_rule": by_rule}
    if header.engine == FALLBACK:
        facts["by_rule"] = rows
    if not (path / REJECTED).is_dir():
        return facts
    reasons: Counter[str] = Counter()
    first = 0  # rows whose first completion was refused
    parts = manifest.open_dataset(path / REJECTED, "rejects").paths()
    for batch in _batches(parts, "rejects", ["reason", "attempt"]):
        reasons.update(batch["reason"].to_pylist())
        first += sum(attempt == 0 for attempt in batch["attempt"].to_pylist())
    facts["reasons"] = {why: reasons[why] for why in quality.REASONS if reasons[why]}
    facts["accepted_share"] = 1 - first / max(1, rows)
    return facts
