"""Every family of pipelines paints what its own call paints, with its text read once."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import DiffusionPipeline
from test_diffusers_engine import close, engine_for

from synclr_cli.errors import UsageError

CAPTIONS = ["a red fox", "a red fox", "the dog in snow"]
SEEDS = [11, 12, 2**62 + 13]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that makes a pipeline once and gives its folder."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tiny_pipelines.save(kind, tmp_path_factory.mktemp("family"))
        return made[kind]

    return folder


@pytest.mark.parametrize("family", tiny_pipelines.FAMILIES)
@pytest.mark.parametrize("guidance", [2.5, 0.0])
def test_a_family_paints_what_its_own_call_paints(saved, family, guidance):
    folder = saved(tiny_pipelines.FAMILIES[family])
    settings = {"scheduler": "own", "steps": 3, "guidance": guidance}
    engine = engine_for(folder, **settings)
    assert engine._texts.names, "the text of this family is not read ahead"
    painted = engine.generate(CAPTIONS, CAPTIONS, SEEDS)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for caption, seed, ours in zip(CAPTIONS, SEEDS, painted, strict=True):
        theirs = pipe(
            caption, height=32, width=32, num_inference_steps=3, guidance_scale=guidance,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]  # fmt: skip
        assert close(ours.pixels, np.asarray(theirs))
    assert np.abs(painted[0].pixels.astype(int) - painted[1].pixels).mean() > 1


@pytest.mark.parametrize("family", tiny_pipelines.FAMILIES)
def test_a_caption_is_read_once_for_all_its_views(saved, family):
    engine = engine_for(saved(tiny_pipelines.FAMILIES[family]), scheduler="own", steps=1)
    engine.generate(["a cat"], [""], [1])  # the unconditional text is read now, once
    read = []
    encoder = engine._pipe.text_encoder
    encoder.register_forward_pre_hook(lambda _module, inputs: read.append(len(inputs[0])))
    engine.generate(["a fox"] * 5 + ["the bee"] * 4, [""] * 9, range(9))
    assert sum(read) == 2


def test_a_family_we_do_not_know_is_given_the_words(saved, monkeypatch):
    from synclr_cli.render.engines.diffusers import text

    folder = saved(tiny_pipelines.sd)
    wanted = engine_for(folder, steps=2).generate(CAPTIONS, CAPTIONS, SEEDS)
    monkeypatch.setattr(text, "FAMILIES", {})
    engine = engine_for(folder, steps=2)
    assert not engine._texts.names
    painted = engine.generate(CAPTIONS, CAPTIONS, SEEDS)
    assert all(close(a.pixels, b.pixels) for a, b in zip(painted, wanted, strict=True))


def test_a_negative_prompt_changes_the_picture(saved):
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
def test_memory_options_leave_a_small_picture_as_it_is(saved, option):
    folder = saved(tiny_pipelines.sd)
    plain, other = (
        engine_for(folder, steps=2, **more).generate(CAPTIONS, CAPTIONS, SEEDS)
        for more in ({}, {option: True})
    )
    assert all(close(a.pixels, b.pixels) for a, b in zip(plain, other, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_paints_nearly_the_same(saved, dtype):
    folder = saved(tiny_pipelines.sd)
    full, half = (
        engine_for(folder, steps=3, dtype=d).generate(CAPTIONS, CAPTIONS, SEEDS)
        for d in ("float32", dtype)
    )
    for a, b in zip(full, half, strict=True):
        assert np.abs(a.pixels.astype(int) - b.pixels).mean() < 4


@pytest.mark.slow
def test_a_compiled_denoiser_paints_the_same(saved):
    folder = saved(tiny_pipelines.sd)
    plain, compiled = (
        engine_for(folder, steps=2, **more).generate(CAPTIONS, CAPTIONS, SEEDS)
        for more in ({}, {"compile": True})
    )
    assert all(close(a.pixels, b.pixels) for a, b in zip(plain, compiled, strict=True))
