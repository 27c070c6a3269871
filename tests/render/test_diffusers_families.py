"""Every family of pipelines generates what its own call generates, with its text read once."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import tiny_pipelines
import tiny_recent_pipelines
import torch
from diffusers import DiffusionPipeline
from test_diffusers_engine import close, engine_for

from synclr_cli.errors import UsageError

CAPTIONS = ["a red fox", "a red fox", "the dog in snow"]
SEEDS = [11, 12, 2**62 + 13]


FAMILIES = tiny_pipelines.FAMILIES | tiny_recent_pipelines.FAMILIES


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that makes a pipeline once and gives its folder."""
    folders = {}

    def folder(kind):
        if kind not in folders:
            folders[kind] = tiny_pipelines.save(kind, tmp_path_factory.mktemp("family"))
        return folders[kind]

    return folder


@pytest.fixture(autouse=True)
def smallest_bin(monkeypatch):
    """Let SANA's tables of sizes begin at 64 pixels, for its own call and for ours."""
    for name in ("pipeline_sana", "pipeline_sana_sprint"):
        try:
            module = importlib.import_module(f"diffusers.pipelines.sana.{name}")
        except ImportError:
            continue
        for table in ("ASPECT_RATIO_512_BIN", "ASPECT_RATIO_1024_BIN"):
            monkeypatch.setattr(module, table, {"1.0": [64.0, 64.0]}, raising=False)


def own_arguments(family, guidance, steps):
    """Return what a family's own call is given for a guidance, as its model card has it."""
    if family == "qwen-image":
        return {"true_cfg_scale": guidance, "negative_prompt": " " if guidance > 1 else None}
    if family == "sana-sprint" and steps != 2:
        return {"guidance_scale": guidance, "intermediate_timesteps": None}
    return {"guidance_scale": guidance}


# Z-Image is guided from just above 0 on, the others from above 1.
GUIDED = [(f, g) for f in FAMILIES for g in (2.5, 0.0, *([0.5] if f == "z-image" else []))]


@pytest.mark.parametrize(("family", "guidance"), GUIDED)
def test_a_family_generates_what_its_own_call_generates(saved, family, guidance):
    folder = saved(FAMILIES[family])
    settings = {"scheduler": "own", "steps": 3, "guidance": guidance}
    engine = engine_for(folder, **settings)
    assert engine._texts.read_ahead, "the text of this family is not read ahead"
    engine.generate(CAPTIONS[:1], CAPTIONS[:1], SEEDS[:1])  # so that a shorter text is kept
    images = engine.generate(CAPTIONS, CAPTIONS, SEEDS)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for caption, seed, ours in zip(CAPTIONS, SEEDS, images, strict=True):
        theirs = pipe(
            prompt=caption, height=32, width=32, num_inference_steps=3,
            generator=torch.Generator("cpu").manual_seed(seed),
            **own_arguments(family, guidance, 3),
        ).images[0]  # fmt: skip
        assert close(ours.pixels, np.asarray(theirs))
    assert np.abs(images[0].pixels.astype(int) - images[1].pixels).mean() > 1


@pytest.mark.parametrize("family", tiny_recent_pipelines.GUIDED)
def test_guidance_and_text_reach_the_image(saved, family):
    folder = saved(FAMILIES[family])

    def pixels(caption="a cat", **values):
        engine = engine_for(folder, scheduler="own", steps=2, **values)
        return engine.generate([caption], [""], [1])[0].pixels

    plain = pixels(guidance=3.0)
    assert not np.array_equal(plain, pixels(guidance=0.0))
    assert not np.array_equal(plain, pixels("the bee in snow", guidance=3.0))
    assert not np.array_equal(plain, pixels(guidance=3.0, negative_prompt="the fog"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_caption_is_read_once_for_all_its_views(saved, family):
    engine = engine_for(saved(FAMILIES[family]), scheduler="own", steps=1)
    engine.generate(["a cat"], [""], [1])  # the unconditional text is read now, once
    read = []
    encoder = engine._pipe.text_encoder

    def count(_module, inputs, named):
        read.append(len(inputs[0] if inputs else named["input_ids"]))

    encoder.register_forward_pre_hook(count, with_kwargs=True)
    engine.generate(["a fox"] * 5 + ["the bee"] * 4, [""] * 9, range(9))
    assert sum(read) == 2


def test_a_family_we_do_not_know_is_given_the_words_with_one_warning(saved, monkeypatch, capsys):
    from synclr_cli.render.engines.diffusers import text

    folder = saved(tiny_pipelines.sd)
    expected = engine_for(folder, steps=2).generate(CAPTIONS, CAPTIONS, SEEDS)
    monkeypatch.setattr(text, "FAMILIES", {})
    engine = engine_for(folder, steps=2)
    assert not engine._texts.read_ahead
    images = engine.generate(CAPTIONS, CAPTIONS, SEEDS)
    engine.generate(CAPTIONS, CAPTIONS, SEEDS)
    assert capsys.readouterr().err.count("reads its captions again") == 1
    assert all(close(a.pixels, b.pixels) for a, b in zip(images, expected, strict=True))


def test_a_negative_prompt_changes_the_image(saved):
    folder = saved(tiny_pipelines.sdxl)

    def pixels(words: str) -> np.ndarray:
        engine = engine_for(folder, scheduler="own", steps=2, negative_prompt=words)
        return engine.generate(["a cat"], [""], [1])[0].pixels

    assert not np.array_equal(pixels(""), pixels("the fog"))


@pytest.mark.parametrize(("family", "letters"), [("sdxl", 24), ("sd3", 256), ("flux", 512)])
def test_a_caption_too_long_for_every_encoder_is_counted(saved, family, letters, capsys):
    engine = engine_for(saved(tiny_pipelines.FAMILIES[family]), scheduler="own", steps=1)
    within, beyond = "a" * (letters - 20), "a " * letters
    engine.generate([within, beyond, beyond], [""] * 3, [1, 2, 3])
    assert engine.truncated == {beyond}
    assert f"{letters} tokens" in capsys.readouterr().err


def test_a_flow_matching_model_keeps_its_own_scheduler(saved):
    with pytest.raises(UsageError, match="flow-matching model: got ddim, expected own"):
        engine_for(saved(tiny_pipelines.flux), scheduler="ddim")
    engine_for(saved(tiny_pipelines.flux))  # by itself, too


def test_the_safety_checker_marks_what_it_objects_to(saved):
    folder = saved(tiny_pipelines.checked_sd)
    assert engine_for(folder, steps=1).generate(["a"], [""], [1])[0].flaw == ""
    checked = engine_for(folder, steps=1, safety_checker=True).generate(["a"], [""], [1])[0]
    assert checked.flaw == "unsafe"


def test_a_safety_checker_that_is_not_there_is_refused(saved):
    with pytest.raises(UsageError, match=r"safety_checker: .* comes without one"):
        engine_for(saved(tiny_pipelines.sd), safety_checker=True)


@pytest.mark.parametrize("option", ["vae_slicing", "vae_tiling", "offload"])
def test_memory_options_leave_a_small_image_as_it_is(saved, option):
    folder = saved(tiny_pipelines.sd)
    plain, other = (
        engine_for(folder, steps=2, **more).generate(CAPTIONS, CAPTIONS, SEEDS)
        for more in ({}, {option: True})
    )
    assert all(close(a.pixels, b.pixels) for a, b in zip(plain, other, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_generates_nearly_the_same(saved, dtype):
    folder = saved(tiny_pipelines.sd)
    full, half = (
        engine_for(folder, steps=3, dtype=d).generate(CAPTIONS, CAPTIONS, SEEDS)
        for d in ("float32", dtype)
    )
    for a, b in zip(full, half, strict=True):
        assert np.abs(a.pixels.astype(int) - b.pixels).mean() < 4


@pytest.mark.slow
def test_a_compiled_denoiser_generates_the_same(saved):
    folder = saved(tiny_pipelines.sd)
    plain, compiled = (
        engine_for(folder, steps=2, **more).generate(CAPTIONS, CAPTIONS, SEEDS)
        for more in ({}, {"compile": True})
    )
    assert all(close(a.pixels, b.pixels) for a, b in zip(plain, compiled, strict=True))
