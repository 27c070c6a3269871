"""Which pictures there are to train on, and whether they are enough for a config.

images/1 parts --one column of numbers--> Corpus: caption -> part, first row, views
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synclr_cli import console
from synclr_cli.config import TrainConfig
from synclr_cli.data import artifacts, storage
from synclr_cli.errors import DataError, UsageError


@dataclass(frozen=True)
class Corpus:
    """Where the views of each caption lie. Arrays are over captions, in the order of the parts."""

    parts: Sequence[Path]
    part: NDArray[np.int32]  # which part holds the caption
    row: NDArray[np.int64]  # its first row there
    views: NDArray[np.int32]  # rows it has
    caption_id: NDArray[np.int64]
    smallest: int | None  # shortest side of any picture, pixels; None: the parts do not tell

    def __len__(self) -> int:
        return len(self.caption_id)

    @cached_property
    def picture(self) -> NDArray[np.int64]:
        """Return the number of each caption's first picture, counted over the whole corpus."""
        return np.cumsum(self.views, dtype=np.int64) - self.views

    @cached_property
    def text(self) -> NDArray[np.int64]:
        """Return a number for each caption, from 0; equal ones have equal texts."""
        return self._codes("caption")

    @cached_property
    def concept(self) -> NDArray[np.int64]:
        """Return a number for each caption, from 0; equal ones have equal concepts."""
        return self._codes("concept")

    def _codes(self, column: str) -> NDArray[np.int64]:
        texts = [
            # Parts that others wrote may have text of another width, or none in a row.
            chunk.cast(pa.large_string()).fill_null("")
            for i, path in enumerate(self.parts)
            for chunk in storage.table(path, [column])[column]
            .take(pa.array(self.row[self.part == i]))
            .chunks
        ]
        coded = pa.chunked_array(texts, pa.large_string()).dictionary_encode().unify_dictionaries()
        chunks = [c.indices.to_numpy(zero_copy_only=False) for c in coded.chunks]
        return np.concatenate(chunks).astype(np.int64)

    def is_of_one(self, column: str) -> bool:
        """Return whether all captions have the same in a column; a part that tells is the last."""
        seen: set[str] = set()
        for path in self.parts:
            seen |= {
                text or "" for text in storage.table(path, [column])[column].unique().to_pylist()
            }
            if len(seen) > 1:
                return False
        return True

    def classes(self, positives: str) -> int:
        """Return how many classes there are, if a class is a caption, a concept or an image."""
        if positives == "image":
            return self.pictures
        return int((self.text if positives == "caption" else self.concept).max()) + 1

    def labels(
        self, positives: str, captions: NDArray[np.int64], views: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the classes, from 0, of views [captions, V] of captions at places [captions]."""
        if positives == "image":
            return self.picture[captions][:, None] + views  # [captions, V]
        of_captions = (self.text if positives == "caption" else self.concept)[captions]
        return np.broadcast_to(of_captions[:, None], views.shape)  # [captions, V]

    @property
    def pictures(self) -> int:
        """Return how many pictures there are."""
        return int(self.views.sum())


def open_corpus(parts: Sequence[Path]) -> Corpus:
    """Index the parts of an images/1 folder by one column of numbers; no text or picture is read.

    Raises:
        DataError: a part is damaged.
    """
    part, row, views, caption_id, smallest = [], [], [], [], []
    for number, path in enumerate(parts):
        file, _ = artifacts.open_parquet(path, "images")
        with file:
            with artifacts.readable(path):
                table = file.read(["caption_id"], use_threads=False)
            ids = table["caption_id"].to_numpy()  # [rows]
            smallest += [_least(file.metadata, side) for side in ("width", "height")]
        first = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1))  # [captions]
        part.append(np.full(len(first), number, np.int32))
        row.append(first)
        views.append(np.diff(first, append=len(ids)).astype(np.int32))
        caption_id.append(ids[first])
    return Corpus(
        parts=tuple(parts),
        part=np.concatenate(part),
        row=np.concatenate(row),
        views=np.concatenate(views),
        caption_id=np.concatenate(caption_id),
        smallest=min((s for s in smallest if s is not None), default=None),
    )


def _least(meta: pq.FileMetaData, column: str) -> int | None:
    """Return a column's smallest number as the file's footer tells it, None if it does not."""
    place = meta.schema.names.index(column)
    told = [meta.row_group(g).column(place).statistics for g in range(meta.num_row_groups)]
    return min((t.min for t in told if t is not None and t.has_min_max), default=None)


def require_trainable(corpus: Corpus, config: TrainConfig, where: Path, world: int) -> None:
    """Refuse a corpus or a world that the config cannot be trained with.

    Raises:
        DataError: too few captions, views or classes.
        UsageError: the batch does not divide by the ranks.
    """
    if not len(corpus):
        raise DataError(f"{where} holds no images", do="render or import some")
    fewest = int(corpus.views.min())
    if fewest < 2 <= config.views:
        alone = int((corpus.views < 2).sum())
        raise DataError(
            f"{where}: {alone} of {len(corpus)} captions have one picture, which leaves the"
            " contrast no positive",
            do="render at least 2 views of each caption (--set render.views=4)",
        )
    if fewest < config.views:
        raise DataError(
            f"{where}: pictures of caption {corpus.caption_id[corpus.views.argmin()]}",
            got=fewest,
            expected=f"at least train.views = {config.views}",
            do=f"render more views, or add --set train.views={fewest}",
        )
    if len(corpus) < config.captions_per_batch:
        raise DataError(
            f"{where}: captions",
            got=len(corpus),
            expected=f"at least train.captions_per_batch = {config.captions_per_batch}",
            do=f"render more captions, or add --set train.captions_per_batch={len(corpus)}",
        )
    if config.positives == "concept" or config.objective != "contrast":
        alone = (
            corpus.pictures < 2
            if config.positives == "image"
            else corpus.is_of_one(config.positives)
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
    if corpus.smallest is not None and corpus.smallest < config.image_size:
        console.warn(
            f"{where}: pictures of {corpus.smallest} px are enlarged to crops of"
            f" {config.image_size} px (train.image_size)"
        )
