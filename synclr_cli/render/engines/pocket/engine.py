"""`pocket:` - the text-to-image model that comes with the package: a flow at 32 x 32 pixels.

    captions -> SmolLM2's vectors, once per caption -> noise of each row's seed -> steps -> pixels

By itself it takes two steps of the UNet that was distilled from the flow with its guidance inside;
a guidance or more than four steps are the flow's. It was taught ten things (words.txt beside the
weights, docs/pocket.md) and makes what it can of anything else; how many captions name none of the
ten is told once. `pocket:FILE` takes other weights, made by tools/pocket.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

from synclr_cli import console
from synclr_cli.config import RenderEngineConfig
from synclr_cli.data import storage
from synclr_cli.engines import GeneratedImage, ImageEngine
from synclr_cli.errors import UsageError
from synclr_cli.learning import runtime, smollm2
from synclr_cli.render.engines.pocket import weights
from synclr_cli.render.engines.pocket.known import WORDS, Known
from synclr_cli.render.engines.pocket.pipeline import SHAPE, SIDE, suit, unfold

SCHEDULERS = {
    "own": FlowMatchEulerDiscreteScheduler,
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,  # twice the passes, less one
}
REMEMBERED = 16_384  # captions, of half a kilobyte each
ENOUGH_TO_TELL = 64  # captions, before most of them being unknown is worth a warning
# Settings of larger pipelines, which have what this one has not.
_STRANGE = ("variant", "revision", "safety_checker", "vae_slicing", "vae_tiling", "offload")


class PocketEngine(ImageEngine):
    """Generate images with the shipped model, on the GPU if there is one."""

    options = frozenset({"allow_unknown"})  # read before the first image: render/meaning.py
    batch_size = 256  # 64 captions of four views: they are read together

    def __init__(self, target: str, config: RenderEngineConfig):
        self._config = config = config.filled(size=SIDE, scheduler="own")
        _require_fitting(config)
        self._steps = config.steps or None
        self._guidance = None if config.guidance == -1 else config.guidance
        path = Path(target).expanduser() if target else weights.SHIPPED
        self._known = Known(path.with_name(WORDS.name))
        diffusers.utils.logging.set_verbosity_error()  # the terminal is ours to write to
        self._pipe = weights.load(path)
        self._pipe.scheduler = SCHEDULERS[config.scheduler]()
        self._pipe.set_progress_bar_config(disable=True)
        device = runtime.pick_device()
        dtype = runtime.dtype(config.dtype, device)
        self._pipe.to(device)
        few = self._pipe.takes_few_steps(self._steps, self._guidance, bool(config.negative_prompt))
        unet = self._pipe.few_steps if few else self._pipe.unet
        unet.to(dtype)
        # Three times as fast, and a vector moves by 4 %; the flow's images stay what they were.
        bfloat16 = few and dtype == torch.bfloat16
        self._pipe.text_dtype = torch.bfloat16 if bfloat16 else torch.float32
        suit(unet, device)
        if config.compile:
            unet.compile()
        used = [path, path.with_name(weights.FEW_STEPS)][: 1 + few]
        self.revision = (
            f"{', '.join(f'{file.name} {storage.short_digest(file)}' for file in used)}, "
            f"text {storage.short_digest(smollm2.weights_file())}, "
            f"{str(dtype).removeprefix('torch.')}"
        )
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()  # caption -> [128], newest last
        self._negative: Tensor | None = None  # [1, 128]
        self._read = self._unknown = 0  # captions
        self._told = False

    def generate(
        self, captions: Sequence[str], concepts: Sequence[str], seeds: Sequence[int]
    ) -> list[GeneratedImage]:
        """Return one image [32, 32, 3] per caption, from the noise of that row's seed."""
        del concepts  # the caption says it
        images: list[GeneratedImage] = []
        for start in range(0, len(captions), self._config.batch_size):
            rows = slice(start, start + self._config.batch_size)
            images += self._generate_batch(captions[rows], seeds[rows])
        return images

    def warnings(self) -> list[str]:
        """Say, unless that is done, if captions named nothing that the model was taught."""
        return [self._unknown_message("")] if self._unknown and not self._told else []

    @torch.inference_mode()
    def _generate_batch(
        self, captions: Sequence[str], seeds: Sequence[int]
    ) -> list[GeneratedImage]:
        self._learn(captions)
        noise = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in seeds]
        samples = self._pipe(
            prompt_embeds=torch.stack([self._vectors[c] for c in captions]),
            negative_prompt_embeds=self._negative,
            num_inference_steps=self._steps,
            guidance_scale=self._guidance,
            latents=torch.stack(noise),
            output_type="latent",
        ).images  # [B, 12, 16, 16]
        finite = samples.isfinite().flatten(1).all(1).tolist()  # [B]
        levels = (unfold(samples) * 127.5 + 127.5).nan_to_num().round_().clamp_(0, 255)
        pixels = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return [
            GeneratedImage(p, flaw="" if whole else "not finite")
            for p, whole in zip(pixels, finite, strict=True)
        ]

    def _learn(self, captions: Sequence[str]) -> None:
        """Encode the captions that are new; forget the oldest."""
        if self._config.negative_prompt and self._negative is None:
            self._negative = self._pipe.encode_prompt(self._config.negative_prompt)
        batch = dict.fromkeys(captions)
        for caption in batch.keys() & self._vectors.keys():
            self._vectors.move_to_end(caption)
        new = [c for c in batch if c not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._pipe.encode_prompt(new), strict=True))
        while len(self._vectors) > max(REMEMBERED, len(batch)):
            self._vectors.popitem(last=False)
        self._read += len(new)
        self._unknown += self._known.count_unknown(new)
        if self._read >= ENOUGH_TO_TELL and 2 * self._unknown > self._read and not self._told:
            self._told = True
            console.warn(self._unknown_message(" so far"))  # not at the end of hours

    def _unknown_message(self, when: str) -> str:
        return (
            f"pocket: knows {len(self._known.things)} things ({', '.join(self._known.things)}); "
            f"{self._unknown} of {self._read} captions{when} name none of them"
        )


def _require_fitting(config: RenderEngineConfig) -> None:
    """Refuse settings that the model cannot follow.

    Raises:
        UsageError: names the setting.
    """
    if config.size != SIDE:
        raise UsageError("pocket: render.engine.size", got=config.size, expected=SIDE)
    if config.scheduler not in SCHEDULERS:
        raise UsageError(
            "pocket: render.engine.scheduler, of a flow",
            got=config.scheduler,
            expected=" | ".join(SCHEDULERS),
        )
    if config.scheduler == "heun" and config.steps == 1:
        raise UsageError("render.engine.steps for heun", got=config.steps, expected="at least 2")
    strange = [key for key in _STRANGE if getattr(config, key)]
    if strange:
        raise UsageError(f"render.engine.{strange[0]} means nothing to pocket:", do="leave it out")
