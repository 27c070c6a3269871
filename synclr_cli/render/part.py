"""One part of a set: what it should hold, what it holds, and what is left to paint.

A part that lacks views, captions or today's class ids (more views asked for, more captions added)
keeps the pictures it has: only what is missing is painted, and the part is replaced as a whole.
Resuming, topping up and continuing a set are this one piece of code.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from synclr_cli.config import RenderConfig
from synclr_cli.data import artifacts, storage
from synclr_cli.errors import UsageError
from synclr_cli.render import quality
from synclr_cli.render.captions_reader import CaptionsReader
from synclr_cli.render.generate import Row, mask_png, view_seed

LARGEST_CLASS = 254  # mask ids: 0 is background, 255 is left for "ignore"
_COLUMNS = tuple(artifacts.COLUMNS["images"])


@dataclass(frozen=True)
class Plan:
    """The whole set: every caption in its part, every concept with its mask id."""

    captions: CaptionsReader
    config: RenderConfig

    @cached_property
    def classes(self) -> list[str]:
        """Return the concept behind each mask id, from id 1 on; one class if there are too many."""
        return self.captions.concepts or ["object"]

    @cached_property
    def class_ids(self) -> dict[str, int]:
        """Return each concept's mask id; a concept that is not there has 1."""
        return {name: i for i, name in enumerate(self.classes, 1)}

    @property
    def parts(self) -> int:
        """Return how many parts the set has."""
        return -(-self.captions.count // self.config.captions_per_part)

    def captions_of(self, index: int) -> list[dict[str, Any]]:
        """Return the captions of part `index`."""
        size = self.config.captions_per_part
        return self.captions.rows(index * size, (index + 1) * size)

    def mark(self, captions: Sequence[Mapping[str, Any]]) -> str:
        """Return what a part of these captions says if it holds exactly what it should."""
        holds = [
            (c["caption_id"], c["caption"], c["concept"], self.class_ids.get(c["concept"], 1))
            for c in captions
        ]
        text = json.dumps([self.config.views, holds])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def row(self, caption: dict[str, Any], view: int, attempt: int = 0) -> Row:
        """Return one view to paint."""
        seed = view_seed(self.config.seed, caption["caption_id"], view, attempt)
        class_id = self.class_ids.get(caption["concept"], 1)
        return Row(
            caption["caption_id"], view, caption["caption"], caption["concept"], seed, class_id
        )


@dataclass
class Part:
    """One part in the making."""

    plan: Plan
    index: int
    views: dict[int, quality.CaptionViews] = field(default_factory=dict)  # by caption id

    def __post_init__(self) -> None:
        captions = self.plan.captions_of(self.index)
        self.mark = self.plan.mark(captions)
        self._captions = {c["caption_id"]: c for c in captions}
        self.views = {i: quality.CaptionViews(i, self.plan.config.views) for i in self._captions}

    def require_own_captions(self, path: Path) -> None:
        """Refuse an earlier version of this part that is of other captions.

        Raises:
            UsageError: it holds pictures of a caption that is not in this part now.
        """
        table = storage.table(path, ["caption_id", "caption", "concept"])
        for record in table.group_by(table.column_names).aggregate([]).to_pylist():
            if record != self._captions.get(record["caption_id"]):
                raise UsageError(
                    f"{path} holds pictures of other captions",
                    do="continue with the captions file it began with, or one that only adds to "
                    "it; else add --overwrite to make it anew, or --out for another place",
                )

    def keep(self, path: Path) -> int:
        """Take over the pictures of an earlier, smaller version of this part; return how many."""
        file, header = artifacts.open_parquet(path, "images")
        for record in file.read().to_pylist():
            if record["mask"] is not None:
                record["mask"] = self._with_class_id(record)
            record["fingerprint"] = quality.fingerprint(record["image"]["bytes"])
            self.views[record["caption_id"]].kept[record["view"]] = record
        for entry in (header.facts or {}).get("rejected", []):
            views = self.views[entry["caption_id"]]
            if entry["view"] in views.kept:  # else it is painted, and rejected, again
                views.rejected.append(entry)
        return sum(len(views.kept) for views in self.views.values())

    def _with_class_id(self, record: dict[str, Any]) -> dict[str, Any]:
        mask = np.asarray(Image.open(io.BytesIO(record["mask"]["bytes"])))
        class_id = self.plan.class_ids.get(record["concept"], 1)
        if mask.max() in (0, class_id):
            return record["mask"]
        return {"bytes": mask_png(mask, class_id, mask.shape[::-1]), "path": None}

    def missing(self) -> list[Row]:
        """Return the views still to paint, caption by caption."""
        return [
            self.plan.row(self._captions[i], view)
            for i, views in self.views.items()
            for view in range(self.plan.config.views)
            if view not in views.kept
        ]

    def settle(self, painted: list[dict[str, Any]]) -> list[Row]:
        """Judge painted views; return those to paint again, from their next seeds."""
        for record in painted:
            self.views[record["caption_id"]].waiting[record["view"]] = record
        again = []
        for i, views in self.views.items():
            wanted = views.settle(self.plan.config)
            if wanted:
                again.append(self.plan.row(self._captions[i], *wanted))
        return again

    def table(self) -> pa.Table:
        """Return the part's rows; captions with too few views are left out."""
        least = self.plan.config.least_views or self.plan.config.views
        records = [
            {column: views.kept[view].get(column) for column in _COLUMNS}
            for views in self.views.values()
            if len(views.kept) >= least
            for view in sorted(views.kept)
        ]
        return pa.Table.from_pylist(records, schema=artifacts.arrow_schema("images"))

    def facts(self) -> dict[str, Any]:
        """Return what the part's header says beside the settings."""
        least = self.plan.config.least_views or self.plan.config.views
        return {
            "mark": self.mark,
            "rejected": sorted(
                (r for v in self.views.values() for r in v.rejected),
                key=lambda r: (r["caption_id"], r["view"]),
            ),
            "set_aside": [
                {
                    "caption_id": i,
                    "caption": self._captions[i]["caption"],
                    "views": len(views.kept),
                    "reasons": sorted({r["reason"] for r in views.rejected}),
                }
                for i, views in self.views.items()
                if len(views.kept) < least
            ],
        }
