"""Sizes of the models behind engines: by name, by a folder's config.json, or told by a setting.

FLOP of denoisers and decoders were counted by torch's FlopCounterMode on the classes of diffusers
in the models' published configurations, on the meta device; `tests/plan` counts two of them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synclr_cli.config import CaptionsConfig, PlanConfig, RenderConfig
from synclr_cli.errors import DataError

MEGA, GIGA, TERA = 1e6, 1e9, 1e12
LATENT = 8  # pixels on the side of a latent's pixel, in the decoders of Stable Diffusion's kind


@dataclass(frozen=True)
class LanguageModel:
    """A causal transformer."""

    weights: float
    layers: int
    width: int
    kv_width: int  # of the keys of a token in a layer: heads x their width

    def flops(self, context: float) -> float:
        """Return the FLOP of one token that attends to `context` tokens."""
        return 2 * self.weights + 4 * self.layers * self.width * context

    def cache_bytes(self, context: float) -> float:
        """Return the bytes of keys and values of one row, in 16 bits."""
        return 2 * 2 * self.layers * self.kv_width * context


@dataclass(frozen=True)
class ImageModel:
    """A denoiser, a decoder, and the encoder of texts."""

    denoiser_flops: float  # of one pass at `size`
    decoder_flops: float  # at `size`
    size: int  # px
    weights: float  # of all of them
    guided: bool = True  # guidance above 1 takes a second pass; else it is an input

    def image_flops(self, size: int, steps: int, guidance: float) -> float:
        """Return the FLOP of one image; by area, which leaves attention's square out."""
        passes = 2 if self.guided and guidance > 1 else 1
        area = (size / self.size) ** 2
        return area * (steps * passes * self.denoiser_flops + self.decoder_flops)


# Layers and widths of the models' config.json on the hub; weights of their cards.
LANGUAGE_MODELS = {
    "meta-llama/Llama-2-7b-hf": LanguageModel(6.74 * GIGA, 32, 4096, 4096),
    "meta-llama/Llama-2-13b-hf": LanguageModel(13.0 * GIGA, 40, 5120, 5120),
    "meta-llama/Llama-3.1-8B": LanguageModel(8.03 * GIGA, 32, 4096, 1024),
    "Qwen/Qwen3-1.7B-Base": LanguageModel(1.72 * GIGA, 28, 2048, 1024),
    "Qwen/Qwen3-4B-Base": LanguageModel(4.02 * GIGA, 36, 2560, 1024),
    "Qwen/Qwen3-8B-Base": LanguageModel(8.19 * GIGA, 36, 4096, 1024),
}
SMOLLM2 = LanguageModel(134.5 * MEGA, 30, 576, 192)
IMAGE_MODELS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ImageModel(
        0.803 * TERA, 2.515 * TERA, 512, 1.07 * GIGA
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": ImageModel(
        6.761 * TERA, 10.47 * TERA, 1024, 3.47 * GIGA
    ),
    "stabilityai/sdxl-turbo": ImageModel(1.589 * TERA, 2.515 * TERA, 512, 3.47 * GIGA),
    "black-forest-labs/FLUX.2-klein-base-4B": ImageModel(
        10.17 * TERA, 2.516 * TERA, 512, 7.98 * GIGA
    ),
    "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers": ImageModel(
        2.967 * TERA, 8.369 * TERA, 1024, 4.57 * GIGA, guided=False
    ),
}


def language_model(config: CaptionsConfig, plan: PlanConfig) -> LanguageModel | None:
    """Return the model that writes the captions, None if its size is not known.

    Raises:
        DataError: a folder's config.json does not describe a language model.
    """
    scheme, _, target = config.engine.name.partition(":")
    if plan.caption_billions:
        # Layers and width of an ordinary model of this size: 12 width^2 weights in a layer.
        layers = max(1, round(32 * (plan.caption_billions / 6.74) ** (1 / 3)))
        width = round((plan.caption_billions * GIGA / 12 / layers) ** 0.5)
        return LanguageModel(plan.caption_billions * GIGA, layers, width, width)
    if scheme == "smollm2":
        return SMOLLM2
    if scheme not in ("transformers", "vllm"):
        return None
    folder = Path(target)
    if (folder / "config.json").is_file():
        return _language_model(_read(folder / "config.json"), folder)
    return LANGUAGE_MODELS.get(target)


def image_model(config: RenderConfig) -> ImageModel | None:
    """Return the model that generates the images, None if its size is not known.

    Raises:
        DataError: a folder's files do not describe a pipeline.
    """
    scheme, _, target = config.engine.name.partition(":")
    if scheme != "diffusers":
        return None
    folder = Path(target)
    if (folder / "model_index.json").is_file():
        return _image_model(folder, config.engine.size or 512)
    return IMAGE_MODELS.get(target)


def _language_model(own: Mapping[str, Any], folder: Path) -> LanguageModel:
    try:
        layers, width = int(own["num_hidden_layers"]), int(own["hidden_size"])
        heads, inner = int(own["num_attention_heads"]), int(own["intermediate_size"])
        vocabulary = int(own["vocab_size"])
        of_head = int(own.get("head_dim") or width // heads)
        kv_width = int(own.get("num_key_value_heads") or heads) * of_head
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as e:
        raise DataError(
            f"{folder / 'config.json'} is not a language model's ({type(e).__name__}: {e})",
            do="tell its size: --set plan.caption_billions=7",
        ) from e
    attention = 2 * width * heads * of_head + 2 * width * kv_width
    tables = vocabulary * width * (1 if own.get("tie_word_embeddings") else 2)
    weights = layers * (attention + 3 * width * inner) + tables
    return LanguageModel(weights, layers, width, kv_width)


def _image_model(folder: Path, size: int) -> ImageModel:
    """Count a pipeline's denoiser and decoder, built on the meta device from their configs."""
    import diffusers
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def build(part: str) -> Any:
        own = _read(folder / part / "config.json")
        kind = getattr(diffusers, str(own.get("_class_name")), None)
        if kind is None:
            raise DataError(
                f"{folder / part / 'config.json'}: _class_name",
                got=own.get("_class_name"),
                expected="a class of diffusers",
                do="tell an image's FLOP: --set plan.image_tflop=80",
            )
        return kind.from_config(own)

    part = "unet" if (folder / "unet").is_dir() else "transformer"
    with torch.device("meta"), torch.no_grad():
        denoiser, decoder = build(part), build("vae")
        weights = sum(p.numel() for m in (denoiser, decoder) for p in m.parameters())
        channels = int(denoiser.config.in_channels)
        side = max(1, size // LATENT)
        with FlopCounterMode(display=False) as of_decoder:
            decoder.decode(torch.empty(1, int(decoder.config.latent_channels), side, side))
        if part == "transformer":  # a weight is a product for each token, of patches of 16 pixels
            passes = 2.0 * sum(p.numel() for p in denoiser.parameters()) * (size / 16) ** 2
        else:
            text = torch.empty(1, 77, int(denoiser.config.cross_attention_dim))
            extra = _added(denoiser)
            with FlopCounterMode(display=False) as of_pass:
                denoiser(torch.empty(1, channels, side, side), torch.empty(1), text, **extra)
            passes = float(of_pass.get_total_flops())
    return ImageModel(passes, float(of_decoder.get_total_flops()), size, weights)


def _added(denoiser: Any) -> dict[str, Any]:
    """Return what SDXL's U-Nets take beside text: sizes, and a pooled text."""
    import torch

    if denoiser.config.addition_embed_type != "text_time":
        return {}
    pooled = int(denoiser.config.projection_class_embeddings_input_dim)
    pooled -= 6 * int(denoiser.config.addition_time_embed_dim)
    added = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}
    return {"added_cond_kwargs": added}


def _read(path: Path) -> dict[str, Any]:
    try:
        own = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"cannot read {path}: {e}", do="name a folder of a whole model") from e
    if not isinstance(own, dict):
        raise DataError(f"{path}", got=type(own).__name__, expected="a JSON object")
    return own
