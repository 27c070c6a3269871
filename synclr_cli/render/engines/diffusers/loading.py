"""A name -> a pipeline on the device, with the scheduler and the options of the settings.

hub id | folder -> diffusers' own loader -> scheduler -> device, memory layout, compilation
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from synclr_cli import hub
from synclr_cli.config import RenderEngineConfig
from synclr_cli.errors import EngineError, UsageError
from synclr_cli.learning import runtime
from synclr_cli.render.engines.diffusers import first_steps

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),  # the paper's, eta 0: no noise but the first
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "own": ("", {}),  # what the pipeline came with: turbo, SD3 and Flux class models
    "auto": ("", {}),  # own for flows, ddim for others
}


@dataclass(frozen=True)
class Loaded:
    """A pipeline ready to be called."""

    pipe: Any
    device: torch.device
    revision: str  # package version, the weights' digest or commit, number format
    base: torch.nn.Module | None = None  # denoiser of the first steps, if options name one


def load(engine: str, target: str, config: RenderEngineConfig) -> Loaded:
    """Load, set up and place the pipeline of `target`.

    Raises:
        UsageError: no target, an unknown scheduler or option, or one that does not fit the model.
        EngineError: no pipeline is there, it cannot be reached, or it generates nothing from text.
    """
    _require_scheduler(config)
    _quiet_libraries()
    folder = _folder(engine, target, config)
    device = runtime.pick_device()
    dtype = runtime.dtype(config.dtype, device)
    pipe = _read(engine, folder, dtype, config)
    _set_scheduler(engine, pipe, config.scheduler)
    _require_steps(pipe.scheduler, config.steps)
    base, digest = None, _digest(folder)
    if "base" in config.options:
        base_folder = _folder(engine, str(config.options["base"]), config)
        base = first_steps.load(engine, pipe, base_folder, dtype, config).to(device)
        digest += f", first steps by {_digest(base_folder)}"
    _place(pipe, device, config)
    number = str(dtype).removeprefix("torch.")
    return Loaded(pipe, device, f"diffusers {diffusers.__version__}, {digest}, {number}", base)


def _require_scheduler(config: RenderEngineConfig) -> None:
    """Refuse scheduler names that are none.

    Raises:
        UsageError: names the nearest.
    """
    if config.scheduler not in SCHEDULERS:
        near = difflib.get_close_matches(config.scheduler, SCHEDULERS, n=1)
        raise UsageError(
            "render.engine.scheduler", got=repr(config.scheduler),
            expected=" | ".join(SCHEDULERS), do=f"did you mean {near[0]}?" if near else "",
        )  # fmt: skip


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and advice off the terminal: it is ours to write to."""
    # torch_dtype is what our oldest diffusers calls it.
    warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def _folder(engine: str, target: str, config: RenderEngineConfig) -> Path:
    """Return the folder of a pipeline, downloaded if `target` is a hub id."""
    if not target:
        raise UsageError("render.engine.name", got="diffusers:", expected="diffusers:MODEL")
    path = Path(target).expanduser()
    if path.is_dir() or target.startswith((".", "/", "~")):
        if not path.is_dir():
            raise EngineError(f"{engine}: no folder {path}")
        if not (path / "model_index.json").is_file():
            raise EngineError(
                f"{engine}: {path} is not a pipeline folder (it has no model_index.json)",
                do="give a folder that save_pretrained of a diffusers pipeline wrote, or a hub id",
            )
        return path
    names = {"variant": config.variant, "revision": config.revision}
    version: dict[str, Any] = {k: v for k, v in names.items() if v}
    offline = hub.cache_only()
    try:
        return Path(
            diffusers.DiffusionPipeline.download(
                target, use_safetensors=True, local_files_only=offline, **version
            )
        )
    except (OSError, ValueError) as e:  # absent and gated models alike
        if offline:
            raise hub.absent(engine, "diffusers:FOLDER") from e
        raise EngineError(
            f"{engine} cannot be loaded ({_first_line(e)})",
            do="check the name and the network; for a gated model accept its licence on the hub "
            "and log in with hf auth login",
        ) from e


def _read(engine: str, folder: Path, dtype: torch.dtype, config: RenderEngineConfig) -> Any:
    index = diffusers.DiffusionPipeline.load_config(folder)
    settings: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
    if config.variant:
        settings["variant"] = config.variant
    has_checker = (index.get("safety_checker") or [None])[0] is not None
    if config.safety_checker and not has_checker:
        raise UsageError(
            f"render.engine.safety_checker: {engine} comes without one",
            do="leave it out, or take a pipeline that has one",
        )
    if not config.safety_checker and "safety_checker" in index:
        settings |= {"safety_checker": None}
        if "requires_safety_checker" in index:
            settings["requires_safety_checker"] = False
    try:
        loader: Any = diffusers.AutoPipelineForText2Image
        pipe = loader.from_pretrained(folder, **settings)
    except ValueError:  # a text-to-image class the Auto table does not list
        pipe = _read_any(engine, folder, settings, index["_class_name"], config.size)
    except (OSError, ImportError, KeyError) as e:
        raise EngineError(f"{engine} cannot be loaded ({_first_line(e)})") from e
    call = inspect.signature(pipe.__call__).parameters
    if "generator" not in call:
        raise EngineError(f"{engine}: {type(pipe).__name__} takes no generator, so no seed")
    if "prompt" not in call or (
        "image" in call and call["image"].default is inspect.Parameter.empty
    ):
        raise EngineError(f"{engine}: {type(pipe).__name__} generates no images from text alone")
    return pipe


def _read_any(engine: str, folder: Path, settings: dict[str, Any], kind: str, size: int) -> Any:
    pipeline: Any = diffusers.DiffusionPipeline
    if isinstance(kind, str) and kind != "PocketPipeline" and not hasattr(diffusers, kind):
        raise EngineError(
            f"{engine} is a {kind}, which diffusers {diffusers.__version__} does not have",
            do="run pip install -U diffusers",
        )
    if kind == "PocketPipeline":  # ours, so diffusers has no such class
        from synclr_cli.render.engines.pocket.pipeline import SIDE, PocketPipeline

        if size != SIDE:
            raise UsageError(f"render.engine.size for {engine}", got=size, expected=SIDE)
        pipeline = PocketPipeline
    try:
        return pipeline.from_pretrained(folder, **settings)
    except (OSError, ValueError, ImportError, AttributeError, KeyError) as e:
        raise EngineError(f"{engine} cannot be loaded ({_first_line(e)})") from e


def _is_flow(scheduler: Any) -> bool:
    """Return whether a scheduler is of a flow-matching model, whose noise levels are its own."""
    kind = scheduler.config.get("prediction_type", "")
    return "FlowMatch" in type(scheduler).__name__ or kind in ("flow_prediction", "trigflow")


def _set_scheduler(engine: str, pipe: Any, name: str) -> None:
    flow = _is_flow(pipe.scheduler)
    if name == "auto":
        name = "own" if flow else "ddim"
    if name == "own":
        return
    if flow:
        raise UsageError(
            f"render.engine.scheduler for {engine}, a flow-matching model",
            got=name,
            expected="own",
        )
    kind, settings = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **settings)


def _require_steps(scheduler: Any, steps: int) -> None:
    """Refuse more steps than a scheduler can take.

    Raises:
        UsageError: says how many it was trained with.
    """
    kind, trained = type(scheduler).__name__, scheduler.config.get("num_train_timesteps", 1000)
    if _is_flow(scheduler):  # its noise levels are no whole numbers: any count fits
        return
    try:
        scheduler.set_timesteps(steps)
        fits = float(scheduler.timesteps.max()) < trained
    except ValueError as e:
        raise UsageError(f"render.engine.steps: {kind}: {_first_line(e)}") from e
    if not fits:
        raise UsageError(
            f"render.engine.steps for {kind}", got=steps, expected=f"fewer than {trained}"
        )


def _place(pipe: Any, device: torch.device, config: RenderEngineConfig) -> None:
    """Put the pipeline on the device, in the memory layout that is fastest there."""
    pipe.set_progress_bar_config(disable=True)
    denoiser = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
    # On a CPU narrow layers are faster with the channels first, wide ones equally fast.
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    if denoiser == "unet":
        pipe.unet.to(memory_format=layout)
    vae = getattr(pipe, "vae", None)
    if vae is not None:
        vae.to(memory_format=layout)
    for key, method in (("vae_slicing", "enable_slicing"), ("vae_tiling", "enable_tiling")):
        if getattr(config, key):
            if not hasattr(vae, method):
                raise UsageError(f"render.engine.{key}: {type(vae).__name__} cannot do that")
            getattr(vae, method)()
    if config.offload and device.type == "cuda":
        pipe.enable_model_cpu_offload()
    else:
        pipe.to(device)
    if config.compile:
        getattr(pipe, denoiser).compile()


def _digest(folder: Path) -> str:
    """Return what names the weights: the hub's commit, or a digest of the folder's files."""
    if folder.parent.name == "snapshots":
        return f"commit {folder.name}"
    total = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(file.relative_to(folder)).encode())
        with open(file, "rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return f"sha256:{total.hexdigest()[:16]}"


def _first_line(e: Exception) -> str:
    return str(e).strip().split("\n", 1)[0][:200]
