"""One part of a set: what it should hold, what it holds, and what is left to generate.

A part that lacks views, captions or today's class ids (more views are to be made, more captions
were added) keeps the images it has: only what is missing is generated, and the part is replaced as
a whole. Resuming, topping up and continuing a set are this one piece of code.
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
from synclr_cli.data import artifacts, image_facts, storage
from synclr_cli.data.manifest import PartFacts
from synclr_cli.data.shards import ShardedDataset, shard_numbers
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

    def todo(self, dataset: ShardedDataset) -> list[int]:
        """Return the numbers of this job's parts that are missing or lack something.

        Raises:
            UsageError: there are parts of more captions, or a part is of other ones.
        """
        shard = self.config.shard
        todo = dataset.missing(self.parts, shard)
        for index in shard_numbers(self.parts, shard):
            facts = dataset.facts(index)
            if facts is not None and not self.is_whole(index, facts):
                Part(self, index).require_same_captions(dataset.path(index))
                todo.append(index)
        return sorted(todo)

    @cached_property
    def set_mark(self) -> str:
        """Return what all parts say that were made of this set of captions and these views."""
        return f"{self.config.views} {self.captions.parent['digest']}"

    def is_whole(self, index: int, facts: PartFacts) -> bool:
        """Return whether a part that is there holds exactly what it should.

        Its captions are read only if it was made of another set, with fewer views or captions.
        """
        if facts.facts.get("set") == self.set_mark:
            return True
        return facts.facts.get("mark") == self.mark(self.captions_of(index))

    def facts(self, parts: Sequence[PartFacts], source: str) -> dict[str, Any] | None:
        """Return what the manifest tells of all parts, None if one lacks something.

        Args:
            source: name of the captions.
        """
        if any(not self.is_whole(index, part) for index, part in enumerate(parts)):
            return None
        masked = any(part.facts["masks"] for part in parts)
        classes = self.classes if masked else []
        return image_facts.of_whole(parts, source=source, views=self.config.views, classes=classes)

    def mark(self, captions: Sequence[Mapping[str, Any]]) -> str:
        """Return what a part of these captions says if it holds exactly what it should."""
        holds = [
            (c["caption_id"], c["caption"], c["concept"], self.class_ids.get(c["concept"], 1))
            for c in captions
        ]
        text = json.dumps([self.config.views, holds])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def row(self, caption: dict[str, Any], view: int, attempt: int = 0) -> Row:
        """Return one view to generate."""
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

    def require_same_captions(self, path: Path) -> None:
        """Refuse an earlier version of this part that is of other captions.

        Raises:
            UsageError: it holds images of a caption that is not in this part now.
        """
        with artifacts.readable(path):
            table = storage.table(path, ["caption_id", "caption", "concept"])
        for record in table.group_by(table.column_names).aggregate([]).to_pylist():
            if record != self._captions.get(record["caption_id"]):
                raise UsageError(
                    f"{path} holds images of other captions",
                    do="continue with the captions it began with, or ones that only add to them;"
                    " else add --overwrite to make it again, or --out for another place",
                )

    def keep(self, path: Path, rejected: Sequence[dict[str, Any]]) -> int:
        """Take over the images of an earlier, smaller version of this part; return how many.

        Args:
            rejected: the views that were refused of it.
        """
        with artifacts.readable(path):
            table = storage.table(path)
        for record in table.to_pylist():
            if record["mask"] is not None:
                record["mask"] = self._with_class_id(record)
            record["fingerprint"] = quality.fingerprint(record["image"]["bytes"])
            self.views[record["caption_id"]].kept[record["view"]] = record
        for entry in rejected:
            views = self.views[entry["caption_id"]]
            if entry["view"] in views.kept:  # else it is generated, and rejected, again
                views.rejected.append(entry)
        return sum(len(views.kept) for views in self.views.values())

    def _with_class_id(self, record: dict[str, Any]) -> dict[str, Any]:
        mask = np.asarray(Image.open(io.BytesIO(record["mask"]["bytes"])))
        class_id = self.plan.class_ids.get(record["concept"], 1)
        if mask.max() in (0, class_id):
            return record["mask"]
        return {"bytes": mask_png(mask, class_id, mask.shape[::-1]), "path": None}

    def missing(self) -> list[Row]:
        """Return the views still to generate, caption by caption."""
        return [
            self.plan.row(self._captions[i], view)
            for i, views in self.views.items()
            for view in range(self.plan.config.views)
            if view not in views.kept
        ]

    def settle(self, generated: list[dict[str, Any]]) -> list[Row]:
        """Put views through the gate; return those to generate again, from their next seeds."""
        for record in generated:
            self.views[record["caption_id"]].waiting[record["view"]] = record
        again = []
        for i, views in self.views.items():
            retry = views.settle(self.plan.config)
            if retry:
                again.append(self.plan.row(self._captions[i], *retry))
        return again

    @property
    def _least(self) -> int:
        return self.plan.config.least_views or self.plan.config.views

    def table(self) -> pa.Table:
        """Return the part's rows; captions with too few views are left out."""
        records = [
            {column: views.kept[view].get(column) for column in _COLUMNS}
            for views in self.views.values()
            if len(views.kept) >= self._least
            for view in sorted(views.kept)
        ]
        return pa.Table.from_pylist(records, schema=artifacts.arrow_schema("images"))

    def marks(self) -> dict[str, str]:
        """Return the facts by which `Plan.is_whole` knows the part again."""
        return {"set": self.plan.set_mark, "mark": self.mark}

    def rejected(self) -> list[dict[str, Any]]:
        """Return the views that the gate refused, with reasons."""
        return sorted(
            (r for v in self.views.values() for r in v.rejected),
            key=lambda r: (r["caption_id"], r["view"]),
        )

    def set_aside(self) -> list[dict[str, Any]]:
        """Return the captions with too few views."""
        return [
            {
                "caption_id": i,
                "caption": self._captions[i]["caption"],
                "views": len(views.kept),
                "reasons": sorted({r["reason"] for r in views.rejected}),
            }
            for i, views in self.views.items()
            if len(views.kept) < self._least
        ]
