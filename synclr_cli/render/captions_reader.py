"""The captions to render, read a batch at a time: memory does not grow with their number.

CaptionFiles --foreign ones: one look at all rows--> rows start to stop, as they are needed
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synclr_cli.data import storage
from synclr_cli.errors import DataError
from synclr_cli.render import captions_files
from synclr_cli.render.captions_files import readable, required_columns, uniform

BATCH_ROWS = storage.ROWS_OF_ANYBODY  # decoded at once
MOST_TO_SORT = 5_000_000  # rows; more are not held in memory to be sorted


class CaptionsReader:
    """The rows of a set of captions in the order of their ids.

    Attributes:
        count: captions.
        parent: what a header says of the captions.
    """

    def __init__(self, path: Path, most_concepts: int):
        self._path = path
        self._files = captions_files.open_files(path)
        self.parent = self._files.parent
        self._starts = np.concatenate(
            [[0], np.cumsum(self._files.rows)]
        )  # first row of each file; the total
        self.count = int(self._starts[-1])
        self._most_concepts = most_concepts
        self._open: _OpenFile | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._first = 0  # row of the batch held
        self._batch: pa.RecordBatch | None = None
        in_order = self._files.in_order or self._check()
        self._sorted = None if in_order else self._sort()

    def __reduce__(self) -> tuple[type[CaptionsReader], tuple[Path, int]]:
        """Open the same captions again, in another process."""
        return CaptionsReader, (storage.resolved(self._path), self._most_concepts)

    @cached_property
    def concepts(self) -> list[str] | None:
        """Return the distinct concepts in alphabetical order, None if they are too many."""
        concepts: set[str] = set()
        with readable(self._path):
            for number in range(len(self._files.rows)):
                opened = self._opened(number)
                if opened.concept is None:
                    concepts.add("")
                    continue
                for batch in opened.file.iter_batches(BATCH_ROWS, columns=[opened.concept]):
                    concepts.update(str(name or "") for name in pc.unique(batch[0]).to_pylist())
                    if len(concepts) > self._most_concepts:
                        return None
        return sorted(concepts)

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Return rows `start` to `stop` as dicts of caption_id, caption and concept.

        Rows further on than those before are read from front to back, each once.

        Raises:
            DataError: the file is damaged.
        """
        stop = min(stop, self.count)
        if self._sorted is not None:
            return self._sorted.slice(start, stop - start).to_pylist()
        rows: list[dict[str, Any]] = []
        with readable(self._path):
            self._seek(start)
            while self._batch is not None:
                begin = max(start - self._first, 0)
                end = min(stop - self._first, len(self._batch))
                if begin < end:
                    rows += self._batch.slice(begin, end - begin).to_pylist()
                if stop <= self._first + len(self._batch):
                    break
                self._first += len(self._batch)
                self._batch = next(self._batches, None)
        return rows

    def _seek(self, row: int) -> None:
        """Hold a batch at or before a row; go on reading only if no row group is in between."""
        file, group, group_start = self._locate(row)
        end = self._first + len(self._batch or ())
        if self._batch is None or self._first > row or end < group_start:
            self._first, self._batches = group_start, self._read(file, group)
            self._batch = next(self._batches, None)

    def _locate(self, row: int) -> tuple[int, int, int]:
        """Return the file and the row group with a row, and the group's first row."""
        last = len(self._files.rows) - 1
        file = min(int(np.searchsorted(self._starts, row, side="right")) - 1, last)
        starts, first = self._opened(file).starts, int(self._starts[file])
        group = int(np.searchsorted(starts, row - first, side="right")) - 1
        return file, group, first + int(starts[group])

    def _read(self, file: int, group: int = 0) -> Iterator[pa.RecordBatch]:
        """Yield the rows from a row group of a file on, to the end of the last file."""
        for number in range(file, len(self._files.rows)):
            opened = self._opened(number)
            groups = list(range(group if number == file else 0, len(opened.starts)))
            row = int(opened.starts[groups[0]]) if groups else 0
            for batch in opened.file.iter_batches(
                BATCH_ROWS, row_groups=groups, columns=opened.columns
            ):
                yield uniform(batch, row, self._path)
                row += len(batch)

    def _opened(self, number: int) -> _OpenFile:
        if self._open is None or self._open.number != number:
            path = self._files.path(number)
            self._open = _OpenFile(number, storage.parquet(path), path)
        return self._open

    def _check(self) -> bool:
        """Read every row of a foreign set once; return whether the ids rise from row to row."""
        last, in_order = -(2**63), True
        with readable(self._path):
            for batch in self._read(0):
                ids = batch["caption_id"].to_numpy()
                in_order = in_order and bool(ids[0] > last and (np.diff(ids) > 0).all())
                last = ids[-1]
        return in_order

    def _sort(self) -> pa.Table:
        if self.count > MOST_TO_SORT:
            raise DataError(
                f"{self._path}: {self.count} captions that are not in the order of caption_id",
                do="sort the file by caption_id",
            )
        with readable(self._path):
            table = pa.Table.from_batches(list(self._read(0))).sort_by("caption_id")
        ids = table["caption_id"].to_numpy()
        repeated = ids[1:][np.diff(ids) == 0]
        if len(repeated):
            raise DataError(f"{self._path}: caption_id {repeated[0]} occurs twice")
        return table


class _OpenFile:
    """One open file, the columns to read and the first row of each of its row groups."""

    def __init__(self, number: int, file: pq.ParquetFile, path: Path):
        self.number, self.file = number, file
        caption, caption_id, self.concept = required_columns(file.schema_arrow.names, path)
        self.columns = [c for c in (caption, caption_id, self.concept) if c is not None]
        meta = file.metadata
        sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        self.starts = np.cumsum([0, *sizes])[: meta.num_row_groups]
