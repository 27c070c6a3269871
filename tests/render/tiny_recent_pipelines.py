"""Random pipelines of newer families, whose text is read by a language model.

Each needs a diffusers that has the class; `FAMILIES` holds those of the installed one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tiny_pipelines import LETTERS, vae

_CHAT = (
    "{% for m in messages %}user: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}answer:{% endif %}"
)


def letters(folder: Path) -> Any:
    """Return a fast tokenizer of single letters with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    inside = Tokenizer(models.Unigram([*pieces, *((c, -2.0) for c in LETTERS)], unk_id=2))
    inside.pre_tokenizer = pre_tokenizers.Metaspace()
    inside.decoder = decoders.Metaspace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inside, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=2048, chat_template=_CHAT,
    )  # fmt: skip


def qwen3(vocabulary: int, layers: int) -> Any:
    """Return a Qwen3 of width 16."""
    config = transformers.Qwen3Config(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=2048,
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(config).eval()


def loud(denoiser: Any, factor: float) -> Any:
    """Return a random denoiser with larger weights, in whose images the words show."""
    with torch.no_grad():
        for layer in denoiser.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(factor)
    return denoiser.eval()


def flux2_klein(folder: Path) -> Any:
    """FLUX.2 klein, base: three layers of a Qwen3 side by side, real guidance."""
    tokenizer = letters(folder)
    denoiser = loud(diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=3 * 16, timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    ), 2)  # fmt: skip
    decoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=32,
    ).eval()  # fmt: skip
    return diffusers.Flux2KleinPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(), decoder, qwen3(len(tokenizer), 28),
        tokenizer, denoiser,
    )  # fmt: skip


def z_image(folder: Path) -> Any:
    """Z-Image: texts of their own lengths, as lists."""
    tokenizer = letters(folder)
    denoiser = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[4, 6, 6], axes_lens=[256, 32, 32],
    ).eval()  # fmt: skip
    return diffusers.ZImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(), vae(), qwen3(len(tokenizer), 2), tokenizer,
        denoiser,
    )  # fmt: skip


def qwen_image(folder: Path) -> Any:
    """Qwen-Image: a vision-language model, texts padded to the longest, a mask."""
    tokenizer = letters(folder)
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 35, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2],
                                "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": 16,
        },
    )  # fmt: skip
    denoiser = loud(diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    ), 3)  # fmt: skip
    decoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    pipe = diffusers.QwenImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(), decoder,
        transformers.Qwen2_5_VLForConditionalGeneration(config).eval(), tokenizer, denoiser,
    )  # fmt: skip
    # Its template in as many tokens as it cuts off again, and one behind the caption.
    before, after = pipe.prompt_template_encode.split("{}")
    count = pipe.prompt_template_encode_start_idx  # 34
    cuts = [len(before) * i // count for i in range(count + 1)]
    tokenizer.add_tokens([*(before[a:b] for a, b in pairwise(cuts)), after])
    return pipe


def _sana(folder: Path, kind: Any, scheduler: Any, sample_size: int, **more: Any) -> Any:
    tokenizer = letters(folder)
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=2048,
    )  # fmt: skip
    denoiser = loud(diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=16, sample_size=sample_size, patch_size=1, **more,
    ), 2)  # fmt: skip
    decoder = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2,
        encoder_block_out_channels=(8, 16), decoder_block_out_channels=(8, 16),
        encoder_block_types=("ResBlock",) * 2, decoder_block_types=("ResBlock",) * 2,
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        downsample_block_type="Conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", scaling_factor=0.4,
    ).eval()  # fmt: skip
    return kind(
        tokenizer, transformers.Gemma2Model(config).eval(), decoder, denoiser, scheduler
    )  # fmt: skip


def sana(folder: Path) -> Any:
    """SANA: Gemma 2 with a mask, an instruction before each caption, sizes from a table."""
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _sana(folder, diffusers.SanaPipeline, flow, 16)


def sana_sprint(folder: Path) -> Any:
    """SANA-Sprint: SANA in few steps, guidance as an input of the model."""
    return _sana(
        folder, diffusers.SanaSprintPipeline, diffusers.SCMScheduler(), 32,
        guidance_embeds=True, qk_norm="rms_norm_across_heads", timestep_scale=1000.0,
    )  # fmt: skip


_ALL: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "flux2-klein": ("Flux2KleinPipeline", flux2_klein),
    "z-image": ("ZImagePipeline", z_image),
    "qwen-image": ("QwenImagePipeline", qwen_image),
    "sana": ("SanaPipeline", sana),
    "sana-sprint": ("SanaSprintPipeline", sana_sprint),
}
FAMILIES = {n: make for n, (kind, make) in _ALL.items() if hasattr(diffusers, kind)}
GUIDED = [n for n in FAMILIES if n != "sana-sprint"]  # with an unconditional half
