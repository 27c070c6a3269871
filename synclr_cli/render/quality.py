"""The gate: which views are kept, and why the others are not.

    a view -> flaws of its own (not finite, unsafe, black, blank, low entropy, low score)
    the views of a caption, in order -> near-duplicates of an earlier one

A view is checked by itself and by the views before it, so that neither batches, nor a resume, nor
views added later change a verdict.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from synclr_cli.config import RenderConfig

BLACK_LEVEL = 10  # of 255; an image that is nowhere brighter is black
BLANK_RANGE = 6  # levels; an image whose channels vary less is of one colour


def flaw(pixels: np.ndarray, config: RenderConfig) -> str:
    """Return what is wrong with an image [H, W, 3] uint8 taken alone, or ""."""
    flat = pixels.reshape(-1, 3)
    low, high = flat.min(0).astype(int), flat.max(0).astype(int)
    if high.max() <= BLACK_LEVEL:
        return "black"
    if (high - low).max() <= BLANK_RANGE:
        return "blank"
    if entropy(pixels) < config.least_entropy:
        return "low entropy"
    return ""


def entropy(pixels: np.ndarray) -> float:
    """Return the Shannon entropy of the grey levels of [H, W, 3] uint8, in bits (0 to 8)."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def fingerprint(encoded: bytes) -> int:
    """Return a stored image's 64-bit perceptual hash, as ImageHash's `phash` defines it.

    Taken from the stored bytes, so that it is the same later.
    """
    image = Image.open(io.BytesIO(encoded))
    image.draft("L", (64, 64))  # a JPEG is then decoded at a fraction of its size
    bits = imagehash.phash(image).hash.ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def low_score(score: float | None, config: RenderConfig) -> str:
    """Return what is wrong with a score of image against caption, or ""."""
    return f"low score of {score:.3f}" if score is not None and score < config.least_score else ""


@dataclass
class CaptionViews:
    """The views of one caption, settled one after the other."""

    caption_id: int
    required: int  # views
    kept: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # view -> record
    rejected: list[dict[str, Any]] = field(default_factory=list)
    waiting: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # generated, not checked
    settled: int = 0  # views before this one are kept or given up
    attempts: int = 0  # spent on the view to settle next

    def settle(self, config: RenderConfig) -> tuple[int, int] | None:
        """Check the waiting views in order; return the (view, attempt) to repeat, if any."""
        while self.settled < self.required:
            view = self.settled
            if view in self.kept:  # from an earlier run
                self._next()
                continue
            record = self.waiting.pop(view, None)
            if record is None:
                return view, self.attempts
            reason = record["flaw"] or low_score(record["score"], config)
            reason = reason or self._duplicate(record, config)
            if not reason:
                self.kept[view] = record
                self._next()
                continue
            self.rejected.append(
                {
                    "caption_id": self.caption_id,
                    "view": view,
                    "seed": record["seed"],
                    "reason": reason,
                }
            )
            if self.attempts < config.redraws:
                self.attempts += 1
            else:
                self._next()
        return None

    def _next(self) -> None:
        self.settled, self.attempts = self.settled + 1, 0

    def _duplicate(self, record: Mapping[str, Any], config: RenderConfig) -> str:
        for view in range(self.settled):
            if view in self.kept:
                differing = record["fingerprint"] ^ self.kept[view]["fingerprint"]
                if differing.bit_count() <= config.duplicate_bits:
                    return f"duplicate of view {view}"
        return ""
