"""Which images there are to train on, and whether they are enough for a config.

    manifest of an images/2 folder --> ImageIndex: caption -> part, first row, views, id

No part is opened: the manifest tells of each part its rows, its captions and their ids. Memory is
some 40 bytes a part, whatever the number of captions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synclr_cli import console
from synclr_cli.config import TrainConfig
from synclr_cli.data import artifacts, part_layout, storage
from synclr_cli.data.manifest import Manifest, open_dataset, part_name
from synclr_cli.errors import DataError, UsageError

COLUMNS = ("rows", "captions", "first", "fewest", "layout")  # of the list of parts
LAYOUTS_KEPT = 256  # decoded ones of parts whose captions are not all alike


@dataclass(frozen=True)
class Located:
    """Where captions lie. All arrays are [captions]."""

    part: NDArray[np.int64]
    row: NDArray[np.int64]  # the caption's first row in its part
    views: NDArray[np.int64]  # rows it has
    caption_id: NDArray[np.int64]
    image: NDArray[np.int64]  # number of its first image, counted over the whole set


def open_images(folder: Path) -> Manifest:
    """Open an images folder with the columns of its list of parts that an index is built of.

    Raises:
        DataError: it is not there, not finished, or damaged.
    """
    return open_dataset(folder, "images", COLUMNS)


class ImageIndex:
    """The captions of an images folder, numbered in the order of its parts.

    Attributes:
        starts: number of each part's first caption, and the number of all, [P + 1].
        images: how many there are.
        fewest: images of a caption, at least.
        smallest: shortest side of any image, pixels; None if there is none.
    """

    def __init__(self, manifest: Manifest):
        self.folder = manifest.folder
        parts = manifest.parts
        captions = parts["captions"].to_numpy()  # [P]
        rows = parts["rows"].to_numpy()  # [P]
        self.starts = np.concatenate([[0], np.cumsum(captions)])  # [P + 1]
        self._rows = np.concatenate([[0], np.cumsum(rows)])  # [P + 1], first of each part
        self._first_id = parts["first"].fill_null(pa.scalar(0)).to_numpy()  # [P]
        self._views = rows // np.maximum(captions, 1)  # [P]; of the parts without a layout
        self._layouts = parts["layout"].combine_chunks()
        self._has_layout = self._layouts.is_valid().to_numpy(zero_copy_only=False)  # [P]
        self._decoded = lru_cache(LAYOUTS_KEPT)(self._decode)
        self.images = int(self._rows[-1])
        none = np.int32(2**31 - 1)
        self._fewest = np.where(captions > 0, parts["fewest"].to_numpy(), none)  # [P]
        self.fewest = int(self._fewest.min(initial=none)) if len(self) else 0
        self.smallest: int | None = manifest.facts.get("smallest_side")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def path(self, part: int) -> Path:
        """Return where a part lies."""
        return self.folder / part_name(part)

    def locate(self, captions: NDArray[np.int64]) -> Located:
        """Return where captions [C], by their numbers, lie."""
        part = np.searchsorted(self.starts, captions, side="right") - 1  # [C]
        number = captions - self.starts[part]  # [C], in its part
        views = self._views[part]
        row, ids = number * views, self._first_id[part] + number
        for irregular in np.unique(part[self._has_layout[part]]):
            own = part == irregular
            of_ids, of_views, of_rows = self._decoded(int(irregular))
            ids[own], views[own] = of_ids[number[own]], of_views[number[own]]
            row[own] = of_rows[number[own]]
        return Located(part, row, views, ids, self._rows[part] + row)

    def caption_ids_with_fewer(self, views: int) -> Iterator[int]:
        """Yield the ids of the captions that have fewer images than so many."""
        for part in np.flatnonzero(self._fewest < views):
            own = self.locate(np.arange(self.starts[part], self.starts[part + 1]))
            yield from own.caption_id[own.views < views].tolist()

    def _decode(self, part: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return ids, views and first rows of the captions of a part with a layout.

        Raises:
            DataError: the layout is damaged.
        """
        data = self._layouts[part].as_py()
        try:
            ids, views = part_layout.decode(int(self._first_id[part]), data)
        except ValueError as e:
            raise DataError(f"{self.folder}: list of parts, {part_name(part)} ({e})") from e
        return ids, views, np.cumsum(views) - views

    @cached_property
    def text(self) -> NDArray[np.int64]:
        """Return a number for each caption, from 0; equal ones have equal texts."""
        return self._codes("caption")

    @cached_property
    def concept(self) -> NDArray[np.int64]:
        """Return a number for each caption, from 0; equal ones have equal concepts."""
        return self._codes("concept")

    def _codes(self, column: str) -> NDArray[np.int64]:
        """Read a column of all parts: for a head with a weight for each class, no other."""
        texts = []
        for part, words in self._texts(column):
            own = np.arange(self.starts[part], self.starts[part + 1])
            texts += words.take(self.locate(own).row).chunks
        coded = pa.chunked_array(texts, pa.large_string()).dictionary_encode().unify_dictionaries()
        chunks = [
            cast("pa.DictionaryArray[Any, Any]", c).indices.to_numpy(False) for c in coded.chunks
        ]
        return np.concatenate(chunks).astype(np.int64)

    def _texts(self, column: str) -> Iterator[tuple[int, pa.ChunkedArray[Any]]]:
        for part in range(len(self._views)):
            path = self.path(part)
            with artifacts.readable(path):
                words = storage.table(path, [column])[column]
            yield part, words.cast(pa.large_string()).fill_null(pa.scalar("", pa.large_string()))

    def is_of_one(self, column: str) -> bool:
        """Return whether all captions have the same in a column; a part that tells is the last."""
        seen: set[str] = set()
        for _, words in self._texts(column):
            seen |= set(map(str, words.unique().to_pylist()))
            if len(seen) > 1:
                return False
        return True

    def classes(self, positives: str) -> int:
        """Return how many classes there are, if a class is a caption, a concept or an image."""
        if positives == "image":
            return self.images
        return int((self.text if positives == "caption" else self.concept).max()) + 1

    def labels(
        self, positives: str, captions: NDArray[np.int64], views: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the classes, from 0, of views [captions, V] of captions by number [captions]."""
        if positives == "image":
            return self.locate(captions).image[:, None] + views  # [captions, V]
        of_captions = (self.text if positives == "caption" else self.concept)[captions]
        return np.broadcast_to(of_captions[:, None], views.shape)  # [captions, V]


def require_trainable(index: ImageIndex, config: TrainConfig, where: Path, world: int) -> None:
    """Refuse a set or a world that the config cannot be trained with.

    Raises:
        DataError: too few captions, views or classes.
        UsageError: the batch does not divide by the ranks.
    """
    if not len(index):
        raise DataError(f"{where} holds no images", do="render or import some")
    fewest = index.fewest
    if fewest < 2 <= config.views:
        alone = sum(1 for _ in index.caption_ids_with_fewer(2))
        raise DataError(
            f"{where}: {alone} of {len(index)} captions have one image, which leaves the"
            " contrast no positive",
            do="render at least 2 views of each caption (--set render.views=4)",
        )
    if fewest < config.views:
        raise DataError(
            f"{where}: images of caption {next(index.caption_ids_with_fewer(fewest + 1))}",
            got=fewest,
            expected=f"at least train.views = {config.views}",
            do=f"render more views, or add --set train.views={fewest}",
        )
    if len(index) < config.captions_per_batch:
        raise DataError(
            f"{where}: captions",
            got=len(index),
            expected=f"at least train.captions_per_batch = {config.captions_per_batch}",
            do=f"render more captions, or add --set train.captions_per_batch={len(index)}",
        )
    if config.positives == "concept" or config.objective != "contrast":
        alone = (
            index.images < 2 if config.positives == "image" else index.is_of_one(config.positives)
        )
        if alone:
            raise DataError(
                f"{where}: kinds of {config.positives}",
                got=1,
                expected="at least 2, or there is nothing to tell apart",
                do="add --set train.positives=caption, or name the concepts",
            )
    if config.captions_per_batch % world:
        raise UsageError(
            "train.captions_per_batch",
            got=config.captions_per_batch,
            expected=f"a multiple of the {world} ranks",
        )
    if index.smallest is not None and index.smallest < config.image_size:
        console.warn(
            f"{where}: images of {index.smallest} px are enlarged to crops of"
            f" {config.image_size} px (train.image_size)"
        )
