"""A captions file of any rows, and a random pipeline in the layout of Stable Diffusion."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from synclr_cli.data import artifacts

CONCEPTS = ("red fox", "fire truck", "teapot", "sunflower")
PLACES = ("in the snow", "on a beach", "next to a blue bench", "in a kitchen", "")


@pytest.fixture
def captions_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a captions/1 file; `rows` are (caption, concept), or a number of made-up ones."""

    def write(
        rows: list[tuple[str, str]] | int, name: str = "captions.parquet", ids: list[int] = ()
    ) -> Path:
        if isinstance(rows, int):
            rows = [
                (f"a {CONCEPTS[i % 4]} {PLACES[i % 5]}".strip(), CONCEPTS[i % 4])
                for i in range(rows)
            ]
        common = {"source": "test", "template": "c", "companion": "", "engine": "test:"}
        records = [
            {"caption_id": i, "caption": caption, "concept": concept, "seed": i, "examples": [],
             "weight": 1.0, **common}
            for i, (caption, concept) in zip(ids or range(len(rows)), rows, strict=True)
        ]  # fmt: skip
        table = pa.Table.from_pylist(records, schema=artifacts.arrow_schema("captions"))
        header = artifacts.Header(schema="captions", config={}, engine="test:")
        path = tmp_path / name
        artifacts.write_parquet(path, "captions", header, [table], rows_per_group=16)
        return path

    return write


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random text-to-image pipeline: CLIP text encoder, UNet, VAE, DDIM."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("pipeline")
    letters = [*map(chr, range(97, 123)), *"0123456789,.-'"]
    words = [*letters, *(f"{c}</w>" for c in letters), "th", "the</w>", "in</w>"]
    vocabulary = [*words, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\ni n</w>\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=40
    )
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=40,
            bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(16, 32), norm_num_groups=8, cross_attention_dim=32,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16), norm_num_groups=8, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder / "sd")
    return folder / "sd"
