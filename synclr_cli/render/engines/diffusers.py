"""`diffusers:NAME` - any text-to-image pipeline of diffusers, by hub id or folder.

    captions -> text embeddings, once per caption (the empty prompt once per run) -> the pipeline's
    own call on a full batch, one CPU noise generator per row -> pixels

The noise of a row comes from its seed alone, so batch size, device and neighbours change a picture
by no more than floating point does. `render.engine.options` may hold `variant`, `revision`,
`compile` (true), `vae_slicing`, `vae_tiling`, `offload` (true) and `negative_prompt`.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

from synclr_cli import console
from synclr_cli.config import RenderEngineConfig
from synclr_cli.engines import Painting
from synclr_cli.errors import EngineError, UsageError
from synclr_cli.learning import runtime

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
}
OPTIONS = (
    "variant", "revision", "compile", "vae_slicing", "vae_tiling", "offload", "negative_prompt",
)  # fmt: skip
# Names of encode_prompt's results in order, by a parameter that tells the pipeline's family.
_TEXT, _POOLED, _MASK = "prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"
_EMBEDDINGS = (
    (f"negative_{_POOLED}", (_TEXT, f"negative_{_TEXT}", _POOLED, f"negative_{_POOLED}")),
    (f"negative_{_MASK}", (_TEXT, _MASK, f"negative_{_TEXT}", f"negative_{_MASK}")),
    (_POOLED, (_TEXT, _POOLED)),
    (f"negative_{_TEXT}", (_TEXT, f"negative_{_TEXT}")),
)


class DiffusersEngine:
    """Paints with a diffusion pipeline on the GPU, if there is one."""

    def __init__(self, target: str, config: RenderEngineConfig):
        self._name = f"engine diffusers:{target}"
        self._config = config
        _require_known(config)
        _quiet_libraries()
        folder = _folder(self._name, target, config.options)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = _dtype(config.dtype, self._device)
        self._pipe = _load(self._name, folder, self._dtype)
        _set_scheduler(self._name, self._pipe, config.scheduler)
        self._place()
        self._call = set(inspect.signature(self._pipe.__call__).parameters)
        self._embedded: dict[str, dict[str, Tensor]] = {}  # by caption, of the last batch
        self._negative: dict[str, Tensor] | None = None
        self._batch = config.batch_size
        self.truncated: set[str] = set()  # captions the text encoder could not read to the end
        number = str(self._dtype).removeprefix("torch.")
        self.revision = f"diffusers {diffusers.__version__}, {_digest(folder)}, {number}"

    def paint(
        self, captions: Sequence[str], concepts: Sequence[str], seeds: Sequence[int]
    ) -> list[Painting]:
        """Return one picture per caption, from the noise of that row's seed.

        Raises:
            EngineError: the device has no room for even one picture.
        """
        del concepts  # the caption says it
        painted: list[Painting] = []
        with torch.inference_mode():
            while len(painted) < len(captions):
                start = len(painted)
                rows = slice(start, start + self._batch)
                try:
                    painted += self._paint_batch(captions[rows], seeds[rows])
                except torch.OutOfMemoryError as e:
                    self._halve(min(self._batch, len(captions) - start), e)
        return painted

    def _paint_batch(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Painting]:
        arguments: dict[str, Any] = {
            "num_inference_steps": self._config.steps,
            "guidance_scale": self._config.guidance,
            "height": self._config.size,
            "width": self._config.size,
            "generator": [torch.Generator("cpu").manual_seed(s) for s in seeds],
            "output_type": "pt",
        }
        if "eta" in self._call:
            arguments["eta"] = 0.0
        arguments |= self._text(captions)
        pictures = self._pipe(**arguments).images  # [B, 3, H, W] in 0..1
        finite = pictures.isfinite().flatten(1).all(1).tolist()  # [B]
        levels = (pictures.float().nan_to_num() * 255).round_().clamp_(0, 255).to(torch.uint8)
        pixels = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()  # [B, H, W, 3]
        return [
            Painting(p, flaw="" if whole else "not finite")
            for p, whole in zip(pixels, finite, strict=True)
        ]

    def _text(self, captions: Sequence[str]) -> dict[str, Any]:
        """Return the call's text arguments: embeddings, each caption's computed once."""
        names = next((n for key, n in _EMBEDDINGS if key in self._call), None)
        negative = self._config.options.get("negative_prompt", "")
        if names is None or not hasattr(self._pipe, "encode_prompt"):
            plain: dict[str, Any] = {"prompt": list(captions)}
            if "negative_prompt" in self._call:
                plain["negative_prompt"] = [negative] * len(captions)
            return plain
        guided = self._config.guidance > 1 and any("negative" in n for n in names)
        new = [c for c in dict.fromkeys(captions) if c not in self._embedded]
        if guided and self._negative is None:
            encoded = self._encode([""], names, negative)
            self._negative = {n: t for n, t in encoded.items() if "negative" in n}
        if new:
            self._count_truncated(new)
            encoded = self._encode(new, names, None)
            for i, caption in enumerate(new):
                self._embedded[caption] = {
                    n: t[i : i + 1] for n, t in encoded.items() if "negative" not in n
                }
        rows = [self._embedded[c] for c in captions]
        self._embedded = {c: self._embedded[c] for c in dict.fromkeys(captions)}
        text = {n: torch.cat([row[n] for row in rows]) for n in rows[0]}
        if guided and self._negative is not None:
            text |= {n: t.expand(len(rows), *t.shape[1:]) for n, t in self._negative.items()}
        return text

    def _encode(
        self, prompts: list[str], names: tuple[str, ...], negative: str | None
    ) -> dict[str, Tensor]:
        """Return the pipeline's own text embeddings [len(prompts), ...] by argument name."""
        parameters = inspect.signature(self._pipe.encode_prompt).parameters
        known: dict[str, Any] = {
            "device": self._pipe._execution_device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": negative is not None,
        }
        if negative is not None:
            known["negative_prompt"] = [negative] * len(prompts)
        known |= dict.fromkeys(("prompt_2", "prompt_3"))  # None: the same prompt again
        given = {k: v for k, v in known.items() if k in parameters}
        results = self._pipe.encode_prompt(prompts, **given)
        return {n: t for n, t in zip(names, results, strict=False) if isinstance(t, Tensor)}

    def _count_truncated(self, captions: list[str]) -> None:
        tokenizer = getattr(self._pipe, "tokenizer", None)
        if tokenizer is None:
            return
        limit = tokenizer.model_max_length
        for caption in captions:
            # A token is a character at least, so most captions need no counting.
            if len(caption) + 2 > limit and len(tokenizer(caption).input_ids) > limit:
                if not self.truncated:
                    console.warn(
                        f"a caption is longer than the text encoder's {limit} tokens; what goes "
                        f"beyond is not painted: {caption[:60]}..."
                    )
                self.truncated.add(caption)

    def _halve(self, size: int, error: Exception) -> None:
        if size == 1:
            raise EngineError(
                f"{self._name}: no memory for one picture of {self._config.size} px",
                do="try --set render.engine.dtype=bfloat16, a smaller render.engine.size, or "
                "--set render.engine.options={offload=true}",
            ) from error
        self._batch = size // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        console.warn(f"out of memory: going on with {self._batch} pictures at a time")

    def _place(self) -> None:
        """Put the pipeline on the device, in the memory layout that is fastest there."""
        pipe, options = self._pipe, self._config.options
        pipe.set_progress_bar_config(disable=True)
        denoiser = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
        # On a CPU in bfloat16 group norms are several times slower with the channels last.
        layout = torch.channels_last
        if self._device.type == "cpu" and self._dtype == torch.bfloat16:
            layout = torch.contiguous_format
        if denoiser == "unet":
            pipe.unet.to(memory_format=layout)
        vae = getattr(pipe, "vae", None)
        if vae is not None:
            vae.to(memory_format=layout)
            if options.get("vae_slicing"):
                vae.enable_slicing()
            if options.get("vae_tiling"):
                vae.enable_tiling()
        if options.get("offload") and self._device.type == "cuda":
            pipe.enable_model_cpu_offload()
        else:
            pipe.to(self._device)
        if options.get("compile"):
            getattr(pipe, denoiser).compile()


def _require_known(config: RenderEngineConfig) -> None:
    """Refuse scheduler and option names nobody reads.

    Raises:
        UsageError: names the nearest.
    """
    for key, found, known in (
        ("render.engine.scheduler", [config.scheduler], list(SCHEDULERS)),
        ("render.engine.options", list(config.options), list(OPTIONS)),
    ):
        for name in found:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise UsageError(
                    key, got=repr(name), expected=" | ".join(known),
                    do=f"did you mean {near[0]}?" if near else "",
                )  # fmt: skip


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and advice off the terminal: it is ours to write to."""
    # torch_dtype is what our oldest diffusers calls it.
    warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if runtime.has_fast_bfloat16(device) else torch.float32


def _folder(engine: str, target: str, options: dict[str, Any]) -> Path:
    """Return the folder of a pipeline, downloaded if `target` is a hub id."""
    if not target:
        raise UsageError("render.engine.name", got="diffusers:", expected="diffusers:MODEL")
    path = Path(target).expanduser()
    if path.is_dir() or target.startswith((".", "/", "~")):
        if not path.is_dir():
            raise EngineError(f"{engine}: no folder {path}")
        if not (path / "model_index.json").is_file():
            raise EngineError(
                f"{engine}: {path} is no pipeline folder (it has no model_index.json)",
                do="give a folder that save_pretrained of a diffusers pipeline wrote, or a hub id",
            )
        return path
    wanted = {k: options[k] for k in ("variant", "revision") if k in options}
    try:
        return Path(diffusers.DiffusionPipeline.download(target, use_safetensors=True, **wanted))
    except (OSError, ValueError) as e:  # absent, gated and unreachable models alike
        raise EngineError(
            f"{engine} cannot be loaded ({_first_line(e)})",
            do="check the name and the network; for a gated model accept its licence on the hub "
            "and log in with hf auth login",
        ) from e


def _load(engine: str, folder: Path, dtype: torch.dtype) -> Any:
    # The checker would blank what it dislikes, often wrongly: here such views would be lost.
    index = diffusers.DiffusionPipeline.load_config(folder)
    unchecked = {"safety_checker": None} if "safety_checker" in index else {}
    if "requires_safety_checker" in index:
        unchecked["requires_safety_checker"] = False
    try:
        pipe = diffusers.AutoPipelineForText2Image.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, **unchecked
        )
    except ValueError:  # a text-to-image class the Auto table does not list
        pipe = _load_any(engine, folder, dtype, unchecked)
    except (OSError, ImportError, KeyError) as e:
        raise EngineError(f"{engine} cannot be loaded ({_first_line(e)})") from e
    call = inspect.signature(pipe.__call__).parameters
    if "prompt" not in call or (
        "image" in call and call["image"].default is inspect.Parameter.empty
    ):
        raise EngineError(f"{engine}: {type(pipe).__name__} paints no pictures from text alone")
    return pipe


def _load_any(engine: str, folder: Path, dtype: torch.dtype, unchecked: dict[str, Any]) -> Any:
    try:
        return diffusers.DiffusionPipeline.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, **unchecked
        )
    except (OSError, ValueError, ImportError, AttributeError, KeyError) as e:
        raise EngineError(f"{engine} cannot be loaded ({_first_line(e)})") from e


def _set_scheduler(engine: str, pipe: Any, name: str) -> None:
    if name == "own":
        return
    if "FlowMatch" in type(pipe.scheduler).__name__:
        raise UsageError(
            f"render.engine.scheduler for {engine}, a flow-matching model",
            got=name,
            expected="own",
        )
    kind, settings = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **settings)


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
