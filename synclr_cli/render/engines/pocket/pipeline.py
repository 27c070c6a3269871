"""`PocketPipeline`: a text-to-image flow at 32 x 32 pixels, of diffusers' own parts.

    prompts -> SmolLM2 -> whitened vectors [B, 128]
    noise [B, 12, 16, 16] --UNet, steps of a flow--> [B, 12, 16, 16] -> images [B, 3, 32, 32]

The flow goes straight from noise to image (rectified flow, Liu et al. 2023): at noise level s a
sample is (1 - s) image + s noise and the UNet says noise - image. Four neighbouring pixels are
one position of twelve channels, since a small CPU multiplies wide and short better than narrow and
long. The sentence enters where the noise level does, as scale and shift of every block.

A second UNet, distilled from the first together with its guidance, needs one to four steps of one
pass each; it goes the same equal steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaModel, PreTrainedTokenizerFast

from synclr_cli.render.engines.pocket.text import Whitening, mean_states, read_language_model

SIDE = 32  # pixels
FOLD = 2  # pixels a side of one position
SHAPE = (3 * FOLD**2, SIDE // FOLD, SIDE // FOLD)  # of a sample
STEPS, GUIDANCE = 10, 1.5  # of the flow
FEW_STEPS, MOST_FEW_STEPS = 2, 4  # of the distilled UNet


def make_unet(width: int = 48, text: int = 128) -> UNet2DConditionModel:
    """Return the UNet with new weights."""
    return UNet2DConditionModel(
        sample_size=SHAPE[1],
        in_channels=SHAPE[0],
        out_channels=SHAPE[0],
        block_out_channels=(width, 2 * width, 4 * width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=text,
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=width,
        norm_num_groups=16,
    )


def suit(unet: UNet2DConditionModel, device: torch.device) -> None:
    """Let the UNet attend in the way that is fastest on a device.

    On a CPU torch's fused attention is a tenth slower than one written out, and its
    gradient is an eighth of a training step.
    """
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())


def fold(images: Tensor) -> Tensor:
    """Return images [B, 3, 32, 32] in -1..1 as the UNet's samples [B, 12, 16, 16]."""
    return F.pixel_unshuffle(images, FOLD)


def unfold(samples: Tensor) -> Tensor:
    """Return samples [B, 12, 16, 16] as images [B, 3, 32, 32] in -1..1."""
    return F.pixel_shuffle(samples, FOLD)


class PocketPipeline(DiffusionPipeline):
    """Generates images of prompts with `unet`, the flow, or with `few_steps`; see the module.

    The language model may be left out: it is then read from SmolLM2's package when it is needed.
    """

    model_cpu_offload_seq = "language_model->whitening->few_steps->unet"
    # diffusers' own form
    _optional_components = ["few_steps", "language_model", "tokenizer"]  # noqa: RUF012

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler,
        whitening: Whitening,
        language_model: LlamaModel | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        few_steps: UNet2DConditionModel | None = None,
    ):
        super().__init__()
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            whitening=whitening,
            language_model=language_model,
            tokenizer=tokenizer,
            few_steps=few_steps,
        )
        self.text_dtype = torch.float32  # of SmolLM2, where it is read from its package
        self._from_package: tuple[LlamaModel, PreTrainedTokenizerFast] | None = None

    def add_language_model(self) -> None:
        """Make SmolLM2 a part of the pipeline, so that `save_pretrained` writes it too (0.5 GB).

        Raises:
            EngineError: its package is not there.
        """
        model, tokenizer = self._reader()
        self.register_modules(language_model=model, tokenizer=tokenizer)

    def encode_prompt(self, prompt: str | Sequence[str]) -> Tensor:
        """Return the vectors [B, 128] of prompts.

        Raises:
            EngineError: the pipeline has no language model, and SmolLM2's package is not there.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        states = mean_states(*self._reader(), texts)
        return self.whitening(states.to(self.whitening.device, self.whitening.dtype))

    def _reader(self) -> tuple[LlamaModel, PreTrainedTokenizerFast]:
        if self.language_model is not None:
            return self.language_model, self.tokenizer
        if self._from_package is None:
            model, tokenizer = read_language_model(self.text_dtype)
            self._from_package = model.to(self.whitening.device), tokenizer
        return self._from_package

    def takes_few_steps(
        self, steps: int | None, guidance: float | None, negative: bool = False
    ) -> bool:
        """Return whether a call with these arguments is the distilled UNet's to answer.

        It is if there is one, no guidance is named (it is in its weights) nor anything to lead
        away from, the steps are at most four or not named, and they are Euler's.
        """
        return (
            self.few_steps is not None
            and guidance is None
            and not negative
            and (steps or FEW_STEPS) <= MOST_FEW_STEPS
            and isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler)
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int = SIDE,
        width: int = SIDE,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:  # ImagePipelineOutput, or a tuple
        """Return one 32 x 32 image per prompt.

        Args:
            prompt: captions; or give `prompt_embeds`.
            negative_prompt: what guidance leads away from; without, the mean of all sentences.
            prompt_embeds: what `encode_prompt` returns, [B, 128].
            negative_prompt_embeds: the same of the negative prompt, [1, 128].
            num_inference_steps: without, 2 of the distilled UNet or 10 of the flow.
            guidance_scale: of the flow, whose steps are then two passes each (classifier-free
                guidance); 1 obeys the prompt once, in one pass. Without, up to four steps are of
                the distilled UNet, and more are of the flow at 1.5.
            height: of the images: 32.
            width: of the images: 32.
            generator: one for the batch, or one per image.
            latents: noise to start from [B, 12, 16, 16]; drawn if not given.
            output_type: "pil", "np", "pt" (0 to 1), or "latent": samples, -1 to 1, unclipped.
            return_dict: false for a tuple.

        Raises:
            ValueError: no words, or another size.
        """
        if (height, width) != (SIDE, SIDE):
            raise ValueError(f"size: got {height} x {width}, expected {SIDE} x {SIDE}")
        if prompt_embeds is None:
            if prompt is None:
                raise ValueError("got neither prompt nor prompt_embeds, expected one of them")
            prompt_embeds = self.encode_prompt(prompt)
        if negative_prompt_embeds is None and negative_prompt:
            negative_prompt_embeds = self.encode_prompt(negative_prompt)
        few = self.takes_few_steps(
            num_inference_steps, guidance_scale, negative_prompt_embeds is not None
        )
        unet = self.few_steps if few else self.unet
        text = prompt_embeds.to(unet.device, unet.dtype)  # [B, 128]
        if latents is None:
            latents = _noise(len(text), generator)
        samples = latents.to(unet.device, torch.float32)  # [B, 12, 16, 16]
        if guidance_scale is None:
            guidance_scale = 1.0 if few else GUIDANCE
        self._set_steps(num_inference_steps or (FEW_STEPS if few else STEPS))
        samples = self._follow(unet, samples, text, negative_prompt_embeds, guidance_scale)
        images = samples if output_type == "latent" else self._finish(samples, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _follow(
        self,
        unet: UNet2DConditionModel,
        samples: Tensor,
        text: Tensor,
        negative: Tensor | None,
        guidance: float,
    ) -> Tensor:
        """Take the scheduler's steps from noise [B, 12, 16, 16] to images."""
        guided = guidance != 1
        if guided:
            if negative is None:  # the mean of all sentences is zero
                negative = torch.zeros_like(text[:1])
            text = torch.cat([negative.to(text).expand_as(text), text])  # [2B, 128]
        for t in self.progress_bar(self.scheduler.timesteps):
            seen = samples.to(text.dtype)
            seen = torch.cat([seen, seen]) if guided else seen
            flow = unet(seen, t.expand(len(seen)), None, class_labels=text).sample.float()
            if guided:
                without, with_text = flow.chunk(2)
                flow = without + guidance * (with_text - without)
            samples = self.scheduler.step(flow, t, samples, return_dict=False)[0]
        return samples

    def _set_steps(self, steps: int) -> None:
        """Set equal steps from noise level 1 to 0.

        By itself the Euler scheduler would end with a step from 0.001 to 0, a pass for nothing.
        """
        device = self.unet.device
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            levels = np.linspace(1, 1 / steps, steps)
            self.scheduler.set_timesteps(sigmas=levels, device=device)
        else:
            self.scheduler.set_timesteps(steps, device=device)
        self.scheduler.set_begin_index(0)  # else it is searched for, and a GPU waited for

    def _finish(self, samples: Tensor, output_type: str) -> Any:
        images = (unfold(samples) / 2 + 0.5).clamp(0, 1)  # [B, 3, 32, 32]
        if output_type == "pt":
            return images
        values = images.permute(0, 2, 3, 1).cpu().numpy()  # [B, 32, 32, 3]
        return self.numpy_to_pil(values) if output_type == "pil" else values


def _noise(count: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Return noise [B, 12, 16, 16]: each row from its own generator, if there are several."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn((count, *SHAPE), generator=generator)
    return torch.stack([torch.randn(SHAPE, generator=g) for g in generator])
