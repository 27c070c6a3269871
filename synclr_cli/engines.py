"""Engines: the models that write captions and generate images, behind one method each.

An engine is named `scheme:target` and imported only when chosen. Batch in, batch out, same length
and order, one seed per row, no global random state: a row never depends on its neighbours.
Other packages add schemes through the entry points `synclr.caption_engines` and
`synclr.image_engines`; each names a class called as `Engine(target, config)`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from synclr_cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from synclr_cli.config import CaptionEngineConfig, RenderEngineConfig


class Prompt(NamedTuple):  # a million are made in seconds
    """One caption to write."""

    text: str  # examples and the open last line, for a language model to complete
    concept: str
    kind: str  # object | place | texture
    template: str  # c | c_bg | c_rel
    companion: str  # background or relation word; "" for c
    gloss: str = ""  # a hypernym or definition, where the concept list has one


class CaptionEngine(Protocol):
    """Writes captions."""

    revision: str  # what exactly ran: package version, weights' digest

    def __init__(self, target: str, config: CaptionEngineConfig): ...

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Return one completion per prompt, as sampled with that row's seed, up to a newline."""
        ...


@dataclass(frozen=True)
class GeneratedImage:
    """One view of a caption."""

    pixels: np.ndarray  # [H, W, 3] uint8
    mask: np.ndarray | None = None  # [H, W] uint8 of class ids; 0 is background
    flaw: str = ""  # why the engine itself would not keep it: "not finite", "unsafe"


class ImageEngine(Protocol):
    """Generates images from captions."""

    revision: str

    def __init__(self, target: str, config: RenderEngineConfig): ...

    def generate(
        self, captions: Sequence[str], concepts: Sequence[str], seeds: Sequence[int]
    ) -> list[GeneratedImage]:
        """Return one image per caption, from the noise of that row's seed."""
        ...


_TABLES = {
    "caption": {
        "smollm2": "synclr_cli.captions.engines.smollm2:SmolLM2Engine",
        "transformers": "synclr_cli.captions.engines.transformers:TransformersEngine",
        "template": "synclr_cli.captions.engines.template:TemplateEngine",
        "server": "synclr_cli.captions.engines.server:ServerEngine",
        "vllm": "synclr_cli.captions.engines.vllm:VllmEngine",
    },
    "image": {
        "pocket": "synclr_cli.render.engines.pocket.engine:PocketEngine",
        "procedural": "synclr_cli.render.engines.procedural:ProceduralEngine",
        "diffusers": "synclr_cli.render.engines.diffusers:DiffusersEngine",
    },
}


def require_scheme(kind: str, name: str) -> None:
    """Refuse a scheme nobody offers, before anything heavy is imported.

    Raises:
        UsageError: names the nearest scheme.
    """
    scheme = name.partition(":")[0]
    offered = schemes(kind)
    if scheme not in offered:
        near = difflib.get_close_matches(scheme, offered, n=1)
        hint = f"did you mean {near[0]}:?" if near else "schemes are " + ", ".join(offered)
        raise UsageError(f"unknown {kind} engine {name}", do=hint)


def schemes(kind: str) -> list[str]:
    """Return the schemes on offer, ours first."""
    plugged = entry_points(group=f"synclr.{kind}_engines")
    return [*_TABLES[kind], *sorted(p.name for p in plugged)]


def load(kind: str, config: Any) -> Any:
    """Import and build the engine a config names.

    Raises:
        UsageError: unknown scheme.
        EngineError: a package or a model is not there.
    """
    require_scheme(kind, config.name)
    scheme, _, target = config.name.partition(":")
    if scheme in _TABLES[kind]:
        module, _, name = _TABLES[kind][scheme].partition(":")
        engine_class = getattr(importlib.import_module(module), name)
    else:
        (point,) = entry_points(group=f"synclr.{kind}_engines", name=scheme)
        engine_class = point.load()
    return engine_class(target, config)
