"""Rows to paint -> encoded rows: seeds, resizing, encoding, and who does it meanwhile.

    rows -> batches of `engine.batch_size` -> engine.paint (-> score) -> resize -> JPEG | WebP | PNG
    -> records

A model paints in this process, one batch after the other, while threads encode the batches before.
A `parallel` engine (small, no device) is built once in each of several processes instead. Either
way a batch holds the same rows, so the records are the same.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from synclr_cli import engines, rng
from synclr_cli.config import RenderConfig
from synclr_cli.engines import ImageEngine, Painting
from synclr_cli.errors import EngineError
from synclr_cli.render import quality

Score = Callable[[Sequence[np.ndarray], Sequence[str]], list[float]]  # pictures, captions

WORTH_PROCESSES = 256  # pictures; below, starting processes takes longer than painting


@dataclass(frozen=True)
class Row:
    """One view to paint."""

    caption_id: int
    view: int
    caption: str
    concept: str
    seed: int
    class_id: int  # that its mask writes for the concept's pixels


def view_seed(seed: int, caption_id: int, view: int, attempt: int = 0) -> int:
    """Return the seed of a view's starting noise, 63 bits, from what names it and nothing else."""
    return rng.seed("render.view", seed, caption_id, view, attempt)


class Painter:
    """Turns rows into futures of encoded records, in batches, in order."""

    def __init__(
        self, engine: ImageEngine, config: RenderConfig, pool: Executor, score: Score | None
    ):
        self._engine, self._config, self._pool, self._score = engine, config, pool, score
        self._remote = isinstance(pool, ProcessPoolExecutor)

    def submit(
        self, rows: list[Row], painted: Callable[[int], None] = lambda _: None
    ) -> list[Future[list[dict[str, Any]]]]:
        """Paint the rows of one part; `painted` hears of each batch how many it was."""
        size = self._config.engine.batch_size
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        if not self._remote:
            return [self._paint_here(batch, painted) for batch in batches]
        there = [self._pool.submit(_paint_there, batch) for batch in batches]
        for future, batch in zip(there, batches, strict=True):
            future.add_done_callback(lambda _, batch=batch: painted(len(batch)))
        return there

    def _paint_here(
        self, batch: list[Row], painted: Callable[[int], None]
    ) -> Future[list[dict[str, Any]]]:
        paintings = _paint(self._engine, batch)
        scores = None
        if self._score:
            scores = self._score([p.pixels for p in paintings], [r.caption for r in batch])
        painted(len(batch))
        return self._pool.submit(encode, paintings, batch, self._config, scores)


def load(config: RenderConfig) -> tuple[ImageEngine, Score | None]:
    """Load the model that paints and, if one is named, the model that scores.

    Raises:
        UsageError: unknown scheme, or a setting that does not fit the model.
        EngineError: a package or a model is not there.
    """
    engine = engines.load("image", config.engine)
    if not config.score_model:
        return engine, None
    from synclr_cli.render.scoring import Scorer  # imports torch, which not every engine needs

    return engine, Scorer(config.score_model)


@contextmanager
def painter(
    engine: ImageEngine, config: RenderConfig, pictures: int, score: Score | None = None
) -> Iterator[Painter]:
    """Give a painter for about so many pictures; its helpers end with the block."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    several = (cores or 1) > 1 and pictures >= WORTH_PROCESSES
    pool: Executor
    # A model that scores stays in this process, so the engine does.
    if getattr(engine, "parallel", False) and several and score is None:
        pool = ProcessPoolExecutor(
            cores, multiprocessing.get_context("spawn"), _begin_process, (config,)
        )
    else:
        pool = ThreadPoolExecutor(min(cores or 1, 8), "encoder")
    try:
        yield Painter(engine, config, pool, score)
    except BrokenProcessPool as e:
        raise EngineError(
            "a painting process died", do="look at memory; the same command continues"
        ) from e
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_there: tuple[ImageEngine, RenderConfig]  # of a painting process


def _begin_process(config: RenderConfig) -> None:
    global _there
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _there = (engines.load("image", config.engine), config)


def _leave_with_parent() -> None:
    """End this process when its parent is gone, killed or not."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _paint_there(batch: list[Row]) -> list[dict[str, Any]]:
    engine, config = _there
    return encode(_paint(engine, batch), batch, config)


def _paint(engine: ImageEngine, batch: list[Row]) -> list[Painting]:
    return engine.paint(
        [r.caption for r in batch], [r.concept for r in batch], [r.seed for r in batch]
    )


def encode(
    paintings: list[Painting],
    batch: list[Row],
    config: RenderConfig,
    scores: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Return a batch's records: the images/1 columns, and what the gate wants to know.

    Pictures are resized and encoded, masks get their class ids; `flaw` is why a view would be
    rejected alone, `fingerprint` tells near-duplicates.
    """
    records = []
    given = scores or [None] * len(batch)
    for row, painting, score in zip(batch, paintings, given, strict=True):
        picture = Image.fromarray(painting.pixels)
        size = stored_size(picture.size, config.stored_size)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        mask = None
        if config.masks and painting.mask is not None:
            mask = {"bytes": mask_png(painting.mask, row.class_id, size), "path": None}
        encoded = _picture_bytes(picture, config)
        records.append(
            {
                "caption_id": row.caption_id,
                "view": row.view,
                "caption": row.caption,
                "concept": row.concept,
                "image": {"bytes": encoded, "path": None},
                "width": size[0],
                "height": size[1],
                "seed": row.seed,
                "mask": mask,
                "score": score,
                "flaw": painting.flaw or quality.flaw(painting.pixels, config),
                "fingerprint": quality.fingerprint(encoded),
            }
        )
    return records


def stored_size(painted: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return (width, height) with the shorter side as stored; pictures are never enlarged."""
    scale = min(1.0, shorter / min(painted))
    return max(1, round(painted[0] * scale)), max(1, round(painted[1] * scale))


def mask_png(mask: np.ndarray, class_id: int, size: tuple[int, int]) -> bytes:
    """Return a mask of 0 and 1 [H, W] as a PNG of class ids in `size` (width, height)."""
    picture = Image.fromarray(np.where(mask > 0, np.uint8(class_id), np.uint8(0)))
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.NEAREST)
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()


def _picture_bytes(picture: Image.Image, config: RenderConfig) -> bytes:
    sink = io.BytesIO()
    if config.image_format == "jpeg":
        # Full chroma above 90: half of it would undo what the quality keeps.
        chroma = 0 if config.quality > 90 else 2
        picture.save(sink, "JPEG", quality=config.quality, subsampling=chroma)
    elif config.image_format == "webp":
        picture.save(sink, "WEBP", quality=config.quality, method=4)
    else:
        picture.save(sink, "PNG")
    return sink.getvalue()
