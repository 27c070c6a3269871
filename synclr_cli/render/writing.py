"""Finished parts -> files, by a thread of its own, so that painting need not wait for the disk.

part -> Arrow table -> part-00042.parquet, one after the other, in the order they were handed in
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType

from synclr_cli.data import artifacts, images_manifest as shards
from synclr_cli.render.part import Part

CAPTIONS_PER_GROUP = 16  # a row group is what a reader fetches at once; no caption is split
PARTS_WAITING = 2  # to be written; painting waits for the disk if there are more


class Writer:
    """Writes parts in the background; an error shows at the next `write` or at the end."""

    def __init__(self, parts: artifacts.Parts):
        self._parts = parts
        self._pool = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[Future[None]] = deque()

    def write(self, part: Part) -> None:
        """Hand in a part whose views are settled."""
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= PARTS_WAITING):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, part))

    def _write(self, part: Part) -> None:
        path = self._parts.path(part.index)
        shards.forget_digest(path)
        artifacts.write_parquet(
            path,
            "images",
            replace(self._parts.header, facts=part.facts()),
            [part.table()],
            rows_per_group=CAPTIONS_PER_GROUP * part.plan.config.views,
        )
        shards.note_digest(path)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            while error is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(wait=True)  # what is settled is written, also after Ctrl-C
