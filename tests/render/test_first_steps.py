"""First steps by a base model: what a loop over the two denoisers gives."""

from __future__ import annotations

import pytest
import tiny_pipelines
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from test_diffusers_engine import close, engine_for

from synclr_cli.errors import EngineError, UsageError

CAPTIONS = ["a red fox", "the dog in snow", "a cat"]
SEEDS = [11, 12, 2**62 + 13]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A few-step pipeline and its base: one text encoder and decoder, two denoisers."""
    few = tiny_pipelines.save(tiny_pipelines.sd, tmp_path_factory.mktemp("few"))
    pipe = DiffusionPipeline.from_pretrained(few)
    torch.manual_seed(1)
    other = tiny_pipelines.unet(32)
    base = tmp_path_factory.mktemp("base") / "pipeline"
    StableDiffusionPipeline(
        **(pipe.components | {"unet": other}), requires_safety_checker=False
    ).save_pretrained(base)
    return few, base


def engine(folders, **changes):
    few, base = folders
    options = {"base": str(base), "base_steps": 2} | changes.pop("options", {})
    return engine_for(few, **({"steps": 5, "guidance": 4.0} | changes), options=options)


def loop(folders, caption, seed, *, steps, base_steps, guidance):
    """One image: DDIM, step after step, guided by the base first, unguided after."""
    few, base = (DiffusionPipeline.from_pretrained(f) for f in folders)
    words, nothing = few.encode_prompt(caption, "cpu", 1, True)
    few.scheduler.set_timesteps(steps)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    for i, t in enumerate(few.scheduler.timesteps):
        with torch.no_grad():
            if i < base_steps:
                w, n = (
                    base.unet(latents, t, encoder_hidden_states=e).sample for e in (words, nothing)
                )
                noise = n + guidance * (w - n)
            else:
                noise = few.unet(latents, t, encoder_hidden_states=words).sample
        latents = few.scheduler.step(noise, t, latents, eta=0.0).prev_sample
    with torch.no_grad():
        x = few.vae.decode(latents / few.vae.config.scaling_factor).sample[0]
    return (((x / 2 + 0.5).clamp(0, 1) * 255).round()).to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("base_steps", [1, 2, 4])
def test_the_images_are_those_of_a_loop_over_both_models(folders, base_steps):
    images = engine(folders, options={"base_steps": base_steps}).generate(CAPTIONS, CAPTIONS, SEEDS)
    for caption, seed, image in zip(CAPTIONS, SEEDS, images, strict=True):
        expected = loop(folders, caption, seed, steps=5, base_steps=base_steps, guidance=4.0)
        assert close(image.pixels, expected)
    few = engine_for(folders[0], steps=5, guidance=1.0).generate(CAPTIONS, CAPTIONS, SEEDS)
    assert not close(images[0].pixels, few[0].pixels)


def test_lanes_and_a_second_call_begin_at_the_first_step(folders):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        laned = engine(folders, batch_size=16)
        laned.generate(CAPTIONS, CAPTIONS, SEEDS)
        again = laned.generate(CAPTIONS, CAPTIONS, SEEDS)
    finally:
        torch.set_num_threads(before)
    expected = loop(folders, CAPTIONS[2], SEEDS[2], steps=5, base_steps=2, guidance=4.0)
    assert close(again[2].pixels, expected)


def test_the_revision_names_both(folders):
    assert "first steps by sha256:" in engine(folders).revision


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"options": {"base_steps": 5}}, "from 1 to below 5 steps"),
        ({"guidance": 1.0}, "guidance above 1"),
        ({"compile": True}, "expected neither"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folders, changes, says):
    with pytest.raises(UsageError, match=says):
        engine(folders, **changes)


def test_models_that_do_not_fit_each_other_are_refused(folders, tmp_path):
    sdxl = tiny_pipelines.save(tiny_pipelines.sdxl, tmp_path)
    with pytest.raises((UsageError, EngineError)) as caught:
        engine((folders[0], sdxl))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="expected with base"):
        engine_for(folders[0], options={"base_steps": 1})
