"""`procedural:` - images drawn from the caption itself, with the pixel mask of the concept.

No model and no download: solids built by rule, one species per concept. A line of research of its
own (pre-training on fractals, noise and shaders), not text-to-image diffusion, and never passed
off as such. scene.py tells how an image comes about; words.py what of a caption is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from synclr_cli.config import RenderEngineConfig
from synclr_cli.engines import GeneratedImage, ImageEngine
from synclr_cli.errors import UsageError
from synclr_cli.render.engines.procedural import scene

SIDE = 64  # pixels, unless the settings say
DRAWING = 2  # raise when the same caption and seed would give other pixels


class ProceduralEngine(ImageEngine):
    """Draws captions on the CPU; an image depends on its caption, concept, seed and size only."""

    parallel = True  # small, no device: the images may be generated in several processes

    def __init__(self, target: str, config: RenderEngineConfig):
        if target:
            raise UsageError(
                "render.engine.name", got=f"procedural:{target}", expected="procedural:"
            )
        self.size = config.filled(size=SIDE).size
        self.revision = f"drawing {DRAWING}"

    def generate(
        self, captions: Sequence[str], concepts: Sequence[str], seeds: Sequence[int]
    ) -> list[GeneratedImage]:
        """Return one image per caption, [size, size, 3], with the concept's pixels as 1."""
        rows = zip(captions, concepts, seeds, strict=True)
        return [
            GeneratedImage(*scene.draw(caption, concept, seed, self.size))
            for caption, concept, seed in rows
        ]
