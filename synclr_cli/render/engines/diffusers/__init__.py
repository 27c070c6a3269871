"""`diffusers:NAME` - any text-to-image pipeline of diffusers, by hub id or folder.

    captions -> text embeddings, once per caption (the empty prompt once per run) -> the pipeline's
    own call on a full batch, one CPU noise generator per row -> pixels

The noise of a row comes from its seed alone, so batch size, device and neighbours change an image
by no more than floating point does. On a CPU a batch is shared out among lanes: each is a thread
with cores of its own that runs the same weights, since small products do not spread over many
cores.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from synclr_cli import console
from synclr_cli.config import RenderEngineConfig
from synclr_cli.engines import GeneratedImage, ImageEngine
from synclr_cli.errors import EngineError, UsageError
from synclr_cli.render.engines.diffusers import loading
from synclr_cli.render.engines.diffusers.first_steps import FirstSteps
from synclr_cli.render.engines.diffusers.text import Texts

SIDE, STEPS, GUIDANCE = 512, 50, 2.5  # the paper's, unless the settings say
MOST_LANES = 8  # Python itself is one at a time; more lanes would wait for it


class DiffusersEngine(ImageEngine):
    """Generate images with a diffusion pipeline on the GPU, if there is one.

    `options`: `base`, a model whose first `base_steps` (1) replace those of a few-step model.
    """

    options = frozenset({"base", "base_steps"})

    def __init__(self, target: str, config: RenderEngineConfig):
        self._name = f"engine diffusers:{target}"
        self._config = config = config.filled(size=SIDE, steps=STEPS, guidance=GUIDANCE)
        loaded = loading.load(self._name, target, config)
        self._pipe, self._device, self.revision = loaded.pipe, loaded.device, loaded.revision
        self._call = set(inspect.signature(self._pipe.__call__).parameters)
        self._texts = Texts(self._pipe, config)
        self._first = self._first_steps(loaded.base)
        self._batch = config.batch_size
        self._lanes = self._make_lanes()

    def _first_steps(self, base: torch.nn.Module | None) -> FirstSteps | None:
        steps = self._config.options.get("base_steps", 1)
        if base is None:
            if "base_steps" in self._config.options:
                raise UsageError(
                    "render.engine.options.base_steps", got=steps, expected="with base"
                )
            return None
        if not isinstance(steps, int) or not 1 <= steps < self._config.steps:
            raise UsageError(
                "render.engine.options.base_steps", got=steps,
                expected=f"a whole number from 1 to below {self._config.steps} steps",
            )  # fmt: skip
        if not self._texts.doubled or "callback_on_step_end" not in self._call:
            raise UsageError(
                "render.engine.options.base",
                got=f"{type(self._pipe).__name__} with guidance {self._config.guidance:g}",
                expected="a pipeline of SD, SDXL, SD3 or SANA's kind, and the base's guidance "
                "above 1",
            )
        return FirstSteps(self._pipe, base, steps)

    @property
    def truncated(self) -> set[str]:
        """Return the captions that the text encoder could not read to the end."""
        return self._texts.truncated

    def warnings(self) -> list[str]:
        """Return how many captions were cut short, if some were."""
        count = len(self.truncated)
        return [f"{count} captions were longer than the text encoder reads"] if count else []

    def generate(
        self, captions: Sequence[str], concepts: Sequence[str], seeds: Sequence[int]
    ) -> list[GeneratedImage]:
        """Return one image per caption, from the noise of that row's seed.

        Raises:
            EngineError: the device has no room for even one image.
        """
        del concepts  # the caption says it
        images: list[GeneratedImage] = []
        while len(images) < len(captions):
            start = len(images)
            rows = slice(start, start + self._batch)
            try:
                images += self._generate_batch(captions[rows], seeds[rows])
            except (RuntimeError, MemoryError) as e:
                if not _is_out_of_memory(e):
                    raise
                self._halve(min(self._batch, len(captions) - start), e)
        return images

    def _generate_batch(
        self, captions: Sequence[str], seeds: Sequence[int]
    ) -> list[GeneratedImage]:
        with torch.inference_mode():
            text = self._texts(captions)
        lanes = self._lanes[: len(captions)]
        if len(lanes) == 1:
            return self._generate_lane(lanes[0], text, seeds)
        cores = torch.get_num_threads()
        pool = ThreadPoolExecutor(len(lanes), "lane")
        try:
            running = [
                pool.submit(
                    self._generate_lane, lane, {k: v[rows] for k, v in text.items()}, seeds[rows], n
                )
                for lane, rows, n in zip(
                    lanes, _shares(len(captions), len(lanes)), _counts(cores, len(lanes)),
                    strict=True,
                )
            ]  # fmt: skip
            finished, _ = wait(running, return_when=FIRST_EXCEPTION)
            for lane in finished:
                lane.result()  # raises what the lane raised
            return [image for lane in running for image in lane.result()]
        except BaseException:  # Ctrl-C too
            for lane in lanes:
                lane._interrupt = True  # the pipelines' own way out between two steps
            raise
        finally:
            pool.shutdown(wait=True)
            torch.set_num_threads(cores)  # what a lane sets for itself, new threads inherit

    @torch.inference_mode()
    def _generate_lane(
        self, pipe: Any, text: Mapping[str, Any], seeds: Sequence[int], threads: int = 0
    ) -> list[GeneratedImage]:
        """Run the pipeline's own call on rows of a batch, with so many threads (0: as it is)."""
        if threads:
            torch.set_num_threads(threads)
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
        if self._texts.true_cfg:  # Qwen-Image; its guidance_scale is for distilled models
            arguments["true_cfg_scale"] = arguments.pop("guidance_scale")
        if "intermediate_timesteps" in self._call and self._config.steps != 2:
            arguments["intermediate_timesteps"] = None  # SANA-Sprint's default is for two steps
        if self._first:
            arguments |= self._first.arguments()
        arguments = {k: v for k, v in arguments.items() if k in self._call}
        if self._texts.read_ahead and "negative_prompt" in self._call:
            arguments["negative_prompt"] = None  # its embeddings are there; PixArt's default is ""
        result = pipe(**arguments, **text)
        images: Tensor = result.images  # [B, 3, H, W] in 0..1
        finite = images.isfinite().flatten(1).all(1).tolist()  # [B]
        unsafe = getattr(result, "nsfw_content_detected", None) or [False] * len(seeds)
        levels = (images.float().nan_to_num() * 255).round_().clamp_(0, 255).to(torch.uint8)
        pixels = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()  # [B, H, W, 3]
        return [
            GeneratedImage(p, flaw="not finite" if not whole else "unsafe" if bad else "")
            for p, whole, bad in zip(pixels, finite, unsafe, strict=True)
        ]

    def _make_lanes(self) -> list[Any]:
        """Return the pipeline, on a CPU one for each lane: own scheduler, the same weights."""
        lanes = 1
        # A tokenizer serves one thread at a time, a compiled model too; half precision on a CPU
        # makes some pipelines convert their decoder back and forth.
        if (
            self._device.type == "cpu"
            and self._texts.read_ahead
            and not self._config.compile
            and self._pipe.dtype != torch.float16
        ):
            lanes = min(torch.get_num_threads(), self._config.batch_size, MOST_LANES)
        copies = [copy.copy(self._pipe) for _ in range(lanes - 1)]
        for pipe in copies:
            pipe.scheduler = copy.deepcopy(self._pipe.scheduler)
        return [self._pipe, *copies]

    def _halve(self, size: int, error: Exception) -> None:
        if size == 1:
            raise EngineError(
                f"{self._name}: no memory for one image of {self._config.size} px",
                do="try --set render.engine.dtype=bfloat16, a smaller render.engine.size, or "
                "--set render.engine.offload=true",
            ) from error
        self._batch = size // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        console.warn(f"out of memory: going on with {self._batch} images at a time")


def _shares(rows: int, lanes: int) -> list[slice]:
    """Return consecutive slices of `rows` rows, one a lane, as equal as can be."""
    cuts = [rows * i // lanes for i in range(lanes + 1)]
    return [slice(a, b) for a, b in pairwise(cuts)]


def _counts(cores: int, lanes: int) -> list[int]:
    """Return how many of the cores each lane gets."""
    return [s.stop - s.start for s in _shares(cores, lanes)]


# What torch and oneDNN say when the system has no more memory for a tensor or a work space.
_CPU_OUT_OF_MEMORY = ("can't allocate memory", "could not create a primitive")


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an error is the device's, or of a CPU the system's, lack of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in _CPU_OUT_OF_MEMORY
    )
