"""What an images/1 folder holds: counts, sizes, what was rejected, duplicates; as a page, too.

images/1 folder -> `report` (a dict) -> `page` (one HTML file with the images inside)
"""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from synclr_cli.data import artifacts, storage
from synclr_cli.data.image_facts import REJECTED
from synclr_cli.data.images import DECODE_ERRORS
from synclr_cli.data.manifest import open_dataset
from synclr_cli.render import quality
from synclr_cli.render.engines.pocket.known import WORDS, Known
from synclr_cli.render.sheet import spread

THUMBNAIL = 144  # pixels of an image on the page
LOOKED_AT = 100_000  # images whose bytes are read, at most; counts are of all


def report(folder: Path, looked_at: int = LOOKED_AT) -> dict[str, Any]:
    """Return what a finished images/1 folder holds.

    Keys: `captions`, `concepts`, `images`, `views` (images of a caption -> captions), `sizes`
    ("WxH" -> images), `bytes` (all parts), `bytes_per_image` (median), `masks`, `rejected`
    (reason -> views), `set_aside` (captions), `scores` (quantile -> score, if there are any),
    `same_bytes` and `alike` (images that repeat an earlier one byte for byte, or in their
    perceptual hash), `looked_at`, of these `unreadable`; of `pocket:` also `unknown_captions`,
    which name nothing that it was taught.

    Raises:
        DataError: no finished images/1 folder, or a damaged part.
    """
    dataset = open_dataset(folder, "images", ())
    parts, header = dataset.paths(), dataset.header
    views: Counter[int] = Counter()
    sizes: Counter[str] = Counter()
    concepts: set[str] = set()
    looked = _Looked()
    scores: list[np.ndarray] = []
    known = _known(header.engine)
    unknown = masks = 0
    for path in parts:
        with artifacts.readable(path):
            file, _ = artifacts.open_parquet(path, "images")
            light = file.read(columns=["caption_id", "concept", "width", "height", *_score(file)])
            if known:
                rows = file.read(columns=["caption_id", "caption"]).to_pylist()
                captions = {r["caption_id"]: r["caption"] for r in rows}
                unknown += known.count_unknown(captions.values())
            if "score" in light.column_names:
                scores.append(light["score"].drop_null().to_numpy())
            views.update(Counter(light["caption_id"].to_pylist()).values())
            concepts.update(light["concept"].unique().to_pylist())
            pairs = zip(light["width"].to_pylist(), light["height"].to_pylist(), strict=True)
            sizes.update(f"{w}x{h}" for w, h in pairs)
            for group in range(file.num_row_groups):
                if len(looked.lengths) >= looked_at:
                    break
                table = file.read_row_group(group, columns=["image", "mask"])
                masks += len(table) - table["mask"].null_count
                for image in table["image"].to_pylist():
                    looked.add((image or {}).get("bytes") or b"")
    return {
        "folder": folder.name,
        "digest": dataset.digest,
        "engine": header.engine,
        "revision": header.revision,
        "seed": header.seed,
        "captions": sum(views.values()),
        "concepts": len(concepts),
        "images": sum(n * captions for n, captions in views.items()),
        "views": {str(n): captions for n, captions in sorted(views.items())},
        "sizes": dict(sizes.most_common(8)),
        "parts": len(parts),
        "bytes": dataset.bytes,
        "bytes_per_image": looked.median_length(),
        "masks": masks,
        "rejected": dataset.facts["rejected"],
        "set_aside": dataset.facts["set_aside"],
        "scores": _quantiles(np.concatenate(scores) if scores else np.zeros(0)),
        "same_bytes": looked.same_bytes,
        "alike": looked.same_print,
        "looked_at": len(looked.lengths),
        "unreadable": looked.unreadable,
        **({"unknown_captions": unknown} if known else {}),
    }


class _Looked:
    """What is known of the images whose bytes were looked at."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.same_bytes = self.same_print = self.unreadable = 0
        self._exact: set[bytes] = set()
        self._prints: set[int] = set()

    def add(self, data: bytes) -> None:
        self.lengths.append(len(data))
        try:
            print_ = quality.fingerprint(data)
        except DECODE_ERRORS:
            self.unreadable += 1
            return
        exact = blake2b(data, digest_size=16).digest()
        self.same_bytes += exact in self._exact
        self.same_print += print_ in self._prints
        self._exact.add(exact)
        self._prints.add(print_)

    def median_length(self) -> int:
        return sorted(self.lengths)[len(self.lengths) // 2] if self.lengths else 0


def _known(engine: str) -> Known | None:
    """Return what a `pocket:` was taught, if there is a list of it."""
    scheme, _, target = engine.partition(":")
    known = Known(Path(target).with_name(WORDS.name) if target else WORDS)
    return known if scheme == "pocket" and known.things else None


def _score(file: pq.ParquetFile) -> list[str]:
    return ["score"] if "score" in file.schema_arrow.names else []


def _quantiles(scores: np.ndarray) -> dict[str, float]:
    """Return the least, greatest and middle scores; nothing of nothing."""
    if not len(scores):
        return {}
    names = {"least": 0.0, "1 %": 0.01, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "greatest": 1.0}
    return {name: round(float(np.quantile(scores, q)), 4) for name, q in names.items()}


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1c1c1e;background:#fafaf8;margin:2rem auto;
max-width:76rem;padding:0 1rem} h1{font-size:1.4rem} h2{font-size:1.05rem;margin-top:2rem}
table{border-collapse:collapse} td{padding:.15rem 1.2rem .15rem 0;vertical-align:top}
td:first-child{color:#6e6e73} .row{display:flex;gap:8px;margin:10px 0;align-items:flex-start}
.words{width:15rem;flex:none} .concept{color:#6e6e73;font-size:.85em}
img{width:144px;height:144px;object-fit:cover;border-radius:3px}
"""


def page(folder: Path, out_html: Path, captions: int = 24, views: int = 6) -> Path:
    """Write the report and a contact sheet as one HTML file that needs no other; return it.

    Raises:
        DataError: no finished images/1 folder.
    """
    facts = report(folder)
    body = [f"<h1>{html.escape(folder.name)}</h1>", _table(facts)]
    if facts["rejected"] or facts["set_aside"]:
        body += ["<h2>Rejected</h2>", _table({**facts["rejected"]})]
        body.append(f"<p>{facts['set_aside']} captions were set aside; all are in {REJECTED}/.</p>")
    body.append("<h2>Captions and their views</h2>")
    for shown in spread(folder, captions, views):
        images = "".join(f'<img src="{_inline(p)}" alt="">' for p in shown.images)
        words = html.escape(shown.caption)
        body.append(
            f'<div class="row"><div class="words"><div class="concept">'
            f"{html.escape(shown.concept)}</div>{words}</div>{images}</div>"
        )
    document = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(folder.name)}'
        f"</title><style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )
    with storage.atomic_file(out_html) as partial:
        partial.write_text(document, encoding="utf-8")
    return out_html


def _table(facts: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}</td><td>{html.escape(_text(v))}</td></tr>"
        for name, v in facts.items()
    )
    return f"<table>{rows}</table>"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v:,}" for k, v in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _inline(image: Image.Image) -> str:
    small = image.convert("RGB")
    if max(small.size) > 2 * THUMBNAIL:
        small.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()
