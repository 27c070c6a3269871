"""The captions to paint, read from their file a piece at a time: memory does not grow with it.

captions/1 -> one look at ids and concepts -> rows start to stop, as they are asked for
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from synclr_cli.data import artifacts, storage
from synclr_cli.errors import DataError

PIECE = 8192  # rows decoded at once
MOST_TO_SORT = 5_000_000  # rows; a larger file is not held in memory to be sorted
_COLUMNS = ["caption_id", "caption", "concept"]


class Source:
    """The rows of a captions/1 file in the order of their ids.

    Attributes:
        count: captions.
        concepts: the distinct ones in alphabetical order, or None if there are more than asked for.
        parent: what a header says of the file.
    """

    def __init__(self, path: Path, most_concepts: int):
        self._path = path
        self._file, header = artifacts.open_parquet(path, "captions")
        self.count = self._file.metadata.num_rows
        if not self.count:
            raise DataError(f"{path} holds no captions", do="make some with synclr captions")
        groups = range(self._file.num_row_groups)
        sizes = [self._file.metadata.row_group(g).num_rows for g in groups]
        self._starts = [0, *accumulate(sizes)][:-1]  # first row of each row group
        self._pieces: Iterator[pa.RecordBatch] = iter(())
        self._first, self._piece = 0, None
        in_order, concepts = self._look_through(most_concepts)
        self._sorted = None if in_order else self._sort()
        self.concepts = sorted(concepts) if len(concepts) <= most_concepts else None
        self.parent = artifacts.parent(path, header, storage.digest(path))

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Return rows `start` to `stop` as dicts of id, caption and concept.

        Asking for later rows each time reads the file once from front to back.

        Raises:
            DataError: a row has no caption, or the file is damaged.
        """
        found = self._slice(start, min(stop, self.count))
        for row in found:
            if row["caption"] is None:
                raise DataError(f"{self._path}: caption_id {row['caption_id']} has no caption")
            row["concept"] = row["concept"] or ""
        return found

    def _slice(self, start: int, stop: int) -> list[dict[str, Any]]:
        if self._sorted is not None:
            return self._sorted.slice(start, stop - start).to_pylist()
        found: list[dict[str, Any]] = []
        with artifacts.readable(self._path):
            self._go_to(start)
            while self._piece is not None:
                within = max(start - self._first, 0), min(stop - self._first, len(self._piece))
                if within[0] < within[1]:
                    found += self._piece.slice(within[0], within[1] - within[0]).to_pylist()
                if stop <= self._first + len(self._piece):
                    break
                self._first += len(self._piece)
                self._piece = next(self._pieces, None)
        return found

    def _go_to(self, row: int) -> None:
        """Hold a piece at or before a row; go on reading only if no row group is in between."""
        group = bisect_right(self._starts, row) - 1
        end = self._first + len(self._piece or ())
        if self._piece is None or self._first > row or end < self._starts[group]:
            groups = list(range(group, len(self._starts)))
            self._pieces = self._file.iter_batches(PIECE, row_groups=groups, columns=_COLUMNS)
            self._first, self._piece = self._starts[group], next(self._pieces, None)

    def _look_through(self, most: int) -> tuple[bool, set[str]]:
        """Return whether the ids rise from row to row, and the concepts, a few more than `most`."""
        last, in_order = -1, True
        concepts: set[str] = set()
        with artifacts.readable(self._path):
            for piece in self._file.iter_batches(PIECE, columns=["caption_id", "concept"]):
                if piece["caption_id"].null_count:
                    raise DataError(f"{self._path}: a row has no caption_id")
                ids = piece["caption_id"].to_numpy(zero_copy_only=False)
                in_order = in_order and bool(ids[0] > last and (np.diff(ids) > 0).all())
                last = ids[-1]
                if len(concepts) <= most:
                    concepts.update(name or "" for name in piece["concept"].unique().to_pylist())
        return in_order, concepts

    def _sort(self) -> pa.Table:
        if self.count > MOST_TO_SORT:
            raise DataError(
                f"{self._path}: {self.count} captions that are not in the order of caption_id",
                do="sort the file by caption_id",
            )
        with artifacts.readable(self._path):
            table = self._file.read(columns=_COLUMNS).sort_by("caption_id")
        ids = table["caption_id"].to_numpy()
        repeated = ids[1:][np.diff(ids) == 0]
        if len(repeated):
            raise DataError(f"{self._path}: caption_id {repeated[0]} occurs twice")
        return table
