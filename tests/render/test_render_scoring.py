"""Scores of images against captions: stored, thresholded, and any CLIP-like model's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines
import torch
import transformers
from image_folders import contents, facts, rejected, rows_of
from test_render_run import render_config

from synclr_cli.errors import EngineError
from synclr_cli.render.run import run
from synclr_cli.render.scoring import Scorer

VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 24,
}  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tiny_pipelines.clip_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    text = {
        **TEXT, "vocab_size": len(tokenizer), "bos_token_id": len(tokenizer) - 2,
        "eos_token_id": len(tokenizer) - 1,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder / "model")
    eyes = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    transformers.CLIPProcessor(eyes, tokenizer).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random SigLIP."""
    folder = tmp_path_factory.mktemp("siglip")
    tokenizer, _ = tiny_pipelines.t5(16)
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1,
            "bos_token_id": 1, "projection_size": 32}  # fmt: skip
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    transformers.SiglipModel(config).save_pretrained(folder / "model")
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(
        folder / "model"
    )
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "processor_config.json").write_text(
        json.dumps({"processor_class": "SiglipProcessor"})
    )
    return folder / "model"


def images(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(n)]


def test_a_score_is_the_models_own_cosine(clip):
    captions = ["a red fox", "a bee", "a red fox"]
    found = Scorer(str(clip))(images(3), captions)
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    processor = transformers.CLIPProcessor.from_pretrained(clip)
    with torch.no_grad():
        for score, image, caption in zip(found, images(3), captions, strict=True):
            inputs = processor(text=[caption], images=[image], return_tensors="pt")
            logit = model(**inputs).logits_per_image.item()
            assert score == pytest.approx(logit / model.logit_scale.exp().item(), abs=1e-5)
    assert len({round(s, 6) for s in found}) == 3


def test_siglip_scores_too(siglip):
    found = Scorer(str(siglip))(images(2), ["a red fox", "fox " * 30])
    assert all(-1 <= s <= 1 for s in found) and found[0] != found[1]


def test_scores_are_stored_and_what_fits_badly_is_painted_again(captions_file, tmp_path, clip):
    captions = captions_file(6)
    settings = {"score_model": str(clip), "duplicate_bits": -1, "least_views": 1}
    plain = rows_of(run(render_config(**settings), captions, tmp_path / "plain"))
    scores = [r["score"] for r in plain]
    least = float(np.median(scores))
    out = run(render_config(**settings, least_score=least), captions, tmp_path / "picky")
    assert all(r["score"] >= least for r in rows_of(out))
    low = [e for e in rejected(out) if e["what"] == "rejected view"]
    assert low and all(e["reason"].startswith("low score of") for e in low)
    assert facts(out)["rejected"] == {"low score": len(low)}
    first = {(r["caption_id"], r["view"]): r["seed"] for r in plain}
    again = {(r["caption_id"], r["view"]): r["seed"] for r in rows_of(out)}
    kept = [k for k, r in zip(first, plain, strict=True) if r["score"] >= least]
    assert all(again[k] == first[k] for k in kept)


def test_without_a_score_model_the_column_is_empty(captions_file, tmp_path):
    rows = rows_of(run(render_config(), captions_file(2), tmp_path / "images"))
    assert [r["score"] for r in rows] == [None] * 6


def test_a_score_model_that_is_not_there_costs_nothing(captions_file, tmp_path):
    captions = captions_file(2)
    out = run(render_config(), captions, tmp_path / "images")
    before = contents(out)
    config = render_config(score_model=str(tmp_path / "absent"))
    with pytest.raises(EngineError, match="no such folder"):
        run(config, captions, out, overwrite=True)
    assert contents(out) == before
    with pytest.raises(EngineError, match="no such folder"):
        run(config, captions, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_no_clip_is_one_line(tmp_path):
    with pytest.raises(EngineError, match=r"render\.score_model .* cannot be loaded"):
        Scorer(str(tmp_path))
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="does not compare images with text"):
        Scorer(str(tmp_path))
