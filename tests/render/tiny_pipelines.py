"""Random text-to-image pipelines of the families in use, a few thousand weights each.

Only the layouts are those of the real models; every component is made on the spot.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

LETTERS = [*map(chr, range(97, 123)), *"0123456789,.-'"]


def clip_tokenizer(folder: Path, longest: int = 24) -> Any:
    """Return a CLIP tokenizer of single letters that reads `longest` tokens."""
    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "th", "the</w>"]
    vocabulary = [*words, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=longest
    )


def clip_text(tokenizer: Any, width: int, projection: int = 0) -> Any:
    """Return a CLIP text encoder, with a projection if one is named."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=2, num_attention_heads=2, projection_dim=projection or width,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval()


def t5(width: int) -> tuple[Any, Any]:
    """Return a T5 tokenizer of single letters and an encoder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    inside = Tokenizer(models.Unigram([*pieces, *((c, -2.0) for c in LETTERS)], unk_id=2))
    inside.pre_tokenizer = pre_tokenizers.Metaspace()
    inside.decoder = decoders.Metaspace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inside, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=512,
    )  # fmt: skip
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2,
        num_heads=2, is_encoder_decoder=False,
    )  # fmt: skip
    return tokenizer, transformers.T5EncoderModel(config).eval()


def vae(channels: int = 4) -> Any:
    """Return a decoder that doubles the side once."""
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 16), norm_num_groups=8, latent_channels=channels, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        shift_factor=0.0, use_quant_conv=channels == 4, use_post_quant_conv=channels == 4,
    ).eval()  # fmt: skip


def unet(width: int, **more: Any) -> Any:
    """Return a small UNet over latents of 4 channels, for text of `width`."""
    return diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(16, 32), norm_num_groups=8, cross_attention_dim=width,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **more,
    ).eval()  # fmt: skip


DIFFUSION = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


def sd(folder: Path) -> Any:
    """Stable Diffusion 1.5: CLIP, UNet."""
    tokenizer = clip_tokenizer(folder / "tokenizer")
    return diffusers.StableDiffusionPipeline(
        vae(), clip_text(tokenizer, 32), tokenizer, unet(32),
        diffusers.DDIMScheduler(clip_sample=False, **DIFFUSION), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def checked_sd(folder: Path) -> Any:
    """Stable Diffusion with a safety checker that objects to everything."""
    pipe = sd(folder)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 16}  # fmt: skip
    config = transformers.CLIPConfig(
        vision_config=vision, text_config={"hidden_size": 16}, projection_dim=16
    )
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(-1.0)  # every similarity is above
    eyes = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    return diffusers.StableDiffusionPipeline(
        **{**pipe.components, "safety_checker": checker, "feature_extractor": eyes}
    )


def sdxl(folder: Path) -> Any:
    """SDXL: two CLIPs, sizes as an input, zeros as the unconditional text."""
    tokenizer = clip_tokenizer(folder / "tokenizer")
    second = clip_text(tokenizer, 24, projection=16)
    denoiser = unet(
        32 + 24, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae(), clip_text(tokenizer, 32), second, tokenizer, tokenizer, denoiser,
        diffusers.EulerDiscreteScheduler(
            **{k: v for k, v in DIFFUSION.items() if k != "set_alpha_to_one"}
        ),
        force_zeros_for_empty_prompt=True,
    )  # fmt: skip


def sd3(folder: Path) -> Any:
    """SD3: two CLIPs and T5, a transformer, flow matching."""
    tokenizer = clip_tokenizer(folder / "tokenizer")
    reader, encoder = t5(64)
    denoiser = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, out_channels=4, num_layers=1,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=64,
        caption_projection_dim=32, pooled_projection_dim=16 + 16,
    ).eval()  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        denoiser, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae(),
        clip_text(tokenizer, 16, projection=16), tokenizer,
        clip_text(tokenizer, 16, projection=16), tokenizer, encoder, reader,
    )  # fmt: skip


def flux(folder: Path) -> Any:
    """Flux: CLIP for one vector, T5 for the words, guidance as an input of the model."""
    tokenizer = clip_tokenizer(folder / "tokenizer")
    reader, encoder = t5(32)
    denoiser = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    ).eval()  # fmt: skip
    return diffusers.FluxPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(), vae(), clip_text(tokenizer, 16), tokenizer,
        encoder, reader, denoiser,
    )  # fmt: skip


def pixart(folder: Path) -> Any:
    """PixArt: T5 with a mask of its words, a transformer, sizes from a table."""
    reader, encoder = t5(32)
    denoiser = diffusers.PixArtTransformer2DModel(
        sample_size=32, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        caption_channels=32, in_channels=4, cross_attention_dim=16, out_channels=8,
        use_additional_conditions=False,
    ).eval()  # fmt: skip
    wide = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=8, latent_channels=4, sample_size=256,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip
    return diffusers.PixArtAlphaPipeline(
        reader, encoder, wide, denoiser, diffusers.DDIMScheduler(clip_sample=False, **DIFFUSION)
    )


def lcm(folder: Path) -> Any:
    """A latent consistency model: guidance as an input of the UNet, few steps."""
    tokenizer = clip_tokenizer(folder / "tokenizer")
    return diffusers.LatentConsistencyModelPipeline(
        vae(), clip_text(tokenizer, 32), tokenizer, unet(32, time_cond_proj_dim=8),
        diffusers.LCMScheduler(**DIFFUSION), None, None, requires_safety_checker=False,
    )  # fmt: skip


FAMILIES: dict[str, Callable[[Path], Any]] = {
    "sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux, "lcm": lcm, "pixart": pixart,
}  # fmt: skip


def save(kind: Callable[[Path], Any], folder: Path) -> Path:
    """Make a pipeline and save it; return its folder."""
    torch.manual_seed(0)
    kind(folder).save_pretrained(folder / "pipeline")
    return folder / "pipeline"
