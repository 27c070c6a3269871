"""What every engine promises; each engine's tests call this with an engine they built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from synclr_cli.engines import CaptionEngine, ImageEngine, Prompt


def assert_caption_engine(
    engine: CaptionEngine, prompts: Sequence[Prompt], seeds: Sequence[int]
) -> None:
    """Check length, order, determinism, and that a row does not depend on its neighbours."""
    whole = engine.generate(prompts, seeds)
    assert len(whole) == len(prompts) and all(isinstance(text, str) for text in whole)
    assert all("\n" not in text for text in whole)
    assert engine.generate(prompts, seeds) == whole
    backwards = engine.generate(prompts[::-1], seeds[::-1])
    assert backwards[::-1] == whole
    assert [engine.generate([p], [s])[0] for p, s in zip(prompts, seeds, strict=True)] == whole
    assert engine.generate([], []) == []
    assert_protocol(engine)


def assert_protocol(engine: CaptionEngine | ImageEngine) -> None:
    """Check what an engine says about itself."""
    assert isinstance(engine.revision, str) and engine.revision
    assert engine.batch_size >= 1
    assert engine.options is None or isinstance(engine.options, frozenset)
    warnings = engine.warnings()
    assert isinstance(warnings, list) and all(isinstance(line, str) for line in warnings)


def assert_image_engine(
    engine: ImageEngine,
    captions: Sequence[str],
    concepts: Sequence[str],
    seeds: Sequence[int],
    *,
    within: int = 0,
) -> None:
    """Check length, order, pixels, determinism, and that a row does not depend on its neighbours.

    Args:
        within: 8-bit levels that batching may change a pixel by (floating point).
    """

    def same(a: Any, b: Any) -> bool:
        difference = np.abs(a.pixels.astype(int) - b.pixels.astype(int)).max()
        masks = (a.mask is None) == (b.mask is None) and (
            a.mask is None or np.array_equal(a.mask, b.mask)
        )
        return bool(difference <= within and masks)

    whole = engine.generate(captions, concepts, seeds)
    assert len(whole) == len(captions)
    for image in whole:
        assert image.pixels.dtype == np.uint8 and image.pixels.shape[2] == 3
        assert image.mask is None or image.mask.shape == image.pixels.shape[:2]
    alone = [
        engine.generate([t], [c], [s])[0] for t, c, s in zip(captions, concepts, seeds, strict=True)
    ]
    backwards = engine.generate(captions[::-1], concepts[::-1], seeds[::-1])[::-1]
    for a, b, c in zip(whole, alone, backwards, strict=True):
        assert same(a, b) and same(a, c)
    other = engine.generate(captions[:1], concepts[:1], [seeds[0] + 1])[0]
    assert not np.array_equal(other.pixels, whole[0].pixels), "the seed changes nothing"
    assert engine.generate([], [], []) == []
    assert isinstance(engine.parallel, bool)
    assert_protocol(engine)
