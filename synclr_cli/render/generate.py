"""Rows to generate -> encoded rows: seeds, resizing, encoding, and who does it meanwhile.

    rows -> batches of `engine.batch_size` -> engine.generate (-> score) -> resize
    -> JPEG | WebP | PNG -> records

A model runs in this process, one batch after the other, while threads encode the batches before.
A `parallel` engine (small, no device) is built once in each of several processes instead. Either
way a batch holds the same rows, so the records are the same.
"""

from __future__ import annotations

import functools
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
from synclr_cli.engines import GeneratedImage, ImageEngine
from synclr_cli.errors import EngineError
from synclr_cli.render import quality

Score = Callable[[Sequence[np.ndarray], Sequence[str]], list[float]]  # pixels, captions

WORTH_PROCESSES = 256  # images; below, starting processes takes longer than generating


@dataclass(frozen=True)
class Row:
    """One view to generate."""

    caption_id: int
    view: int
    caption: str
    concept: str
    seed: int
    class_id: int  # that its mask writes for the concept's pixels


def view_seed(seed: int, caption_id: int, view: int, attempt: int = 0) -> int:
    """Return the seed of a view's starting noise, 63 bits, from what names it and nothing else."""
    return rng.seed("render.view", seed, caption_id, view, attempt)


class ImageGenerator:
    """Turns rows into futures of encoded records, in batches, in order."""

    def __init__(
        self, engine: ImageEngine, config: RenderConfig, pool: Executor, score: Score | None
    ):
        self._engine, self._config, self._pool, self._score = engine, config, pool, score
        self._remote = isinstance(pool, ProcessPoolExecutor)

    def submit(
        self, rows: list[Row], on_batch: Callable[[int], None] = lambda _: None
    ) -> list[Future[list[dict[str, Any]]]]:
        """Generate the rows of one part; `on_batch` gets the size of each finished batch."""
        size = self._config.engine.batch_size or self._engine.batch_size
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        if not self._remote:
            return [self._generate_here(batch, on_batch) for batch in batches]
        futures = [self._pool.submit(_generate_in_worker, batch) for batch in batches]
        for future, batch in zip(futures, batches, strict=True):
            future.add_done_callback(functools.partial(_report, on_batch, len(batch)))
        return futures

    def _generate_here(
        self, batch: list[Row], on_batch: Callable[[int], None]
    ) -> Future[list[dict[str, Any]]]:
        images = _generate(self._engine, batch)
        scores = None
        if self._score:
            scores = self._score([image.pixels for image in images], [r.caption for r in batch])
        on_batch(len(batch))
        return self._pool.submit(encode, images, batch, self._config, scores)


def _report(on_batch: Callable[[int], None], size: int, _: Future[Any]) -> None:
    on_batch(size)


def load(config: RenderConfig) -> tuple[ImageEngine, Score | None]:
    """Load the image engine and, if one is named, the model that scores.

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
def image_generator(
    engine: ImageEngine,
    config: RenderConfig,
    images: int,
    score: Score | None = None,
    *,
    cores: int | None = None,
) -> Iterator[ImageGenerator]:
    """Give a generator for about so many images; its helpers end with the block.

    Args:
        cores: that it may use; None: all that this process may.
    """
    if cores is None:
        own = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if own else os.cpu_count() or 1
    several = cores > 1 and images >= WORTH_PROCESSES
    pool: Executor
    # A model that scores stays in this process, so the engine does.
    if engine.parallel and several and score is None:
        pool = ProcessPoolExecutor(
            cores, multiprocessing.get_context("spawn"), _begin_worker, (config,)
        )
    else:
        pool = ThreadPoolExecutor(min(cores, 8), "encoder")
    try:
        yield ImageGenerator(engine, config, pool, score)
    except BrokenProcessPool as e:
        raise EngineError(
            "a process that generates images died", do="look at memory; the same command continues"
        ) from e
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[ImageEngine, RenderConfig]  # of a process of the pool


def _begin_worker(config: RenderConfig) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _worker = (engines.load("image", config.engine), config)


def _leave_with_parent() -> None:
    """End this process when its parent is gone, killed or not."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _generate_in_worker(batch: list[Row]) -> list[dict[str, Any]]:
    engine, config = _worker
    return encode(_generate(engine, batch), batch, config)


def _generate(engine: ImageEngine, batch: list[Row]) -> list[GeneratedImage]:
    return engine.generate(
        [r.caption for r in batch], [r.concept for r in batch], [r.seed for r in batch]
    )


def encode(
    images: list[GeneratedImage],
    batch: list[Row],
    config: RenderConfig,
    scores: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Return a batch's records: the images/1 columns, and what the gate looks at.

    Images are resized and encoded, masks get their class ids; `flaw` is why a view would be
    rejected alone, `fingerprint` tells near-duplicates.
    """
    records = []
    graded: Sequence[float | None] = scores or [None] * len(batch)
    for row, generated, score in zip(batch, images, graded, strict=True):
        image = Image.fromarray(generated.pixels)
        size = stored_size(image.size, config.stored_size)
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        mask = None
        if config.masks and generated.mask is not None:
            mask = {"bytes": mask_png(generated.mask, row.class_id, size), "path": None}
        encoded = _image_bytes(image, config)
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
                "flaw": generated.flaw or quality.flaw(generated.pixels, config),
                "fingerprint": quality.fingerprint(encoded),
            }
        )
    return records


def stored_size(generated: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return (width, height) with the shorter side as stored; images are never enlarged."""
    scale = min(1.0, shorter / min(generated))
    return max(1, round(generated[0] * scale)), max(1, round(generated[1] * scale))


def mask_png(mask: np.ndarray, class_id: int, size: tuple[int, int]) -> bytes:
    """Return a mask of 0 and 1 [H, W] as a PNG of class ids in `size` (width, height)."""
    image = Image.fromarray(np.where(mask > 0, np.uint8(class_id), np.uint8(0)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST)
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def _image_bytes(image: Image.Image, config: RenderConfig) -> bytes:
    sink = io.BytesIO()
    if config.image_format == "jpeg":
        # Full chroma above 90: half of it would undo what the quality keeps.
        chroma = 0 if config.quality > 90 else 2
        image.save(sink, "JPEG", quality=config.quality, subsampling=chroma)
    elif config.image_format == "webp":
        image.save(sink, "WEBP", quality=config.quality, method=4)
    else:
        image.save(sink, "PNG")
    return sink.getvalue()
