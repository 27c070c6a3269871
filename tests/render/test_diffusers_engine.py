"""Diffusion: our batches paint what the pipeline itself paints one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from engine_contract import assert_image_engine

from synclr_cli.config import RenderEngineConfig
from synclr_cli.engines import load
from synclr_cli.errors import EngineError, UsageError

CAPTIONS = ["a red fox", "a red fox", "the dog in the snow", "a cat", "a cat"]
SEEDS = [11, 12, 13, 14, 2**62 + 15]


def engine_for(folder: Path, **values):
    settings = {"size": 32, "steps": 6, "dtype": "float32", "batch_size": 3, **values}
    return load("image", RenderEngineConfig(name=f"diffusers:{folder}", **settings))


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether 99.9 % of the pixels lie within one 8-bit level."""
    return bool((np.abs(a.astype(int) - b.astype(int)) <= 1).mean() >= 0.999)


@pytest.mark.parametrize("guidance", [2.5, 1.0])
def test_it_paints_what_the_pipelines_own_call_paints_one_at_a_time(tiny_pipeline, guidance):
    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    painted = engine_for(tiny_pipeline, guidance=guidance).generate(CAPTIONS, CAPTIONS, SEEDS)
    for caption, seed, ours in zip(CAPTIONS, SEEDS, painted, strict=True):
        theirs = pipe(
            caption, height=32, width=32, num_inference_steps=6, guidance_scale=guidance, eta=0.0,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]  # fmt: skip
        assert close(ours.pixels, np.asarray(theirs))
        assert ours.pixels.std() > 5


def test_batch_size_changes_nothing_beyond_floating_point(tiny_pipeline):
    one, three, sixteen = (
        engine_for(tiny_pipeline, batch_size=n).generate(CAPTIONS, CAPTIONS, SEEDS)
        for n in (1, 3, 16)
    )
    for a, b, c in zip(one, three, sixteen, strict=True):
        assert close(a.pixels, b.pixels) and close(a.pixels, c.pixels)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_lanes_change_nothing_beyond_floating_point(tiny_pipeline, three_threads):
    engine = engine_for(tiny_pipeline, batch_size=16)
    assert len(engine._lanes) == 3
    assert len({id(lane.unet) for lane in engine._lanes}) == 1  # one copy of the weights
    laned = engine.generate(CAPTIONS, CAPTIONS, SEEDS)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    alone = engine_for(tiny_pipeline, batch_size=16)
    assert len(alone._lanes) == 1
    wanted = alone.generate(CAPTIONS, CAPTIONS, SEEDS)
    assert all(close(a.pixels, b.pixels) for a, b in zip(laned, wanted, strict=True))


def test_an_error_in_one_lane_stops_the_others_and_is_raised(tiny_pipeline, three_threads):
    engine = engine_for(tiny_pipeline, batch_size=16, steps=500)
    calls = []

    def break_third_call(_module, _inputs):
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("broken")

    engine._pipe.unet.register_forward_pre_hook(break_third_call)
    with pytest.raises(ValueError, match="broken"):
        engine.generate(CAPTIONS, CAPTIONS, SEEDS)
    assert len(calls) < 300  # of 1500


def test_it_keeps_the_promises_of_an_engine(tiny_pipeline):
    assert_image_engine(engine_for(tiny_pipeline), CAPTIONS, CAPTIONS, SEEDS, within=1)


def test_text_and_guidance_change_the_image(tiny_pipeline):
    def pixels(caption: str, **values) -> np.ndarray:
        return engine_for(tiny_pipeline, **values).generate([caption], [""], [1])[0].pixels

    assert not np.array_equal(pixels("a cat"), pixels("the snow"))
    assert not np.array_equal(pixels("a cat"), pixels("a cat", guidance=9.0))


@pytest.mark.parametrize(
    "scheduler", ["dpm++", "dpm++karras", "unipc", "euler", "pndm", "lcm", "own"]
)
def test_every_scheduler_on_offer_paints(tiny_pipeline, scheduler):
    engine = engine_for(tiny_pipeline, scheduler=scheduler, steps=4)
    a, b = engine.generate(["a cat"] * 2, [""] * 2, [1, 2])
    assert a.pixels.shape == (32, 32, 3) and not np.array_equal(a.pixels, b.pixels)


def test_an_unknown_scheduler_or_option_names_the_nearest(tiny_pipeline):
    with pytest.raises(UsageError, match=r"scheduler.*Did you mean ddim\?"):
        engine_for(tiny_pipeline, scheduler="dim")
    with pytest.raises(UsageError, match=r"options.*Did you mean render\.engine\.compile\?"):
        engine_for(tiny_pipeline, options={"compiled": True})


@pytest.mark.parametrize(("scheduler", "steps"), [("ddim", 1000), ("lcm", 80), ("own", 1000)])
def test_more_steps_than_the_scheduler_has_are_one_line(tiny_pipeline, scheduler, steps):
    with pytest.raises(UsageError, match=rf"render\.engine\.steps.*{steps}") as caught:
        engine_for(tiny_pipeline, scheduler=scheduler, steps=steps)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_pipeline_is_one_line(tmp_path):
    with pytest.raises(EngineError, match=r"not a pipeline folder"):
        engine_for(tmp_path)


def test_an_absent_folder_or_hub_model_is_one_line(tmp_path):
    with pytest.raises(EngineError, match="no folder"):
        engine_for(tmp_path / "absent")
    with pytest.raises(EngineError, match="Check the n") as caught:
        load("image", RenderEngineConfig(name="diffusers:nobody/no-such-model"))
    assert "\n" not in str(caught.value)


def test_a_caption_too_long_for_the_text_encoder_is_told_and_counted(tiny_pipeline, capsys):
    engine = engine_for(tiny_pipeline)
    long = "fox " * 40
    engine.generate(["a cat", long, long], [""] * 3, [1, 2, 3])
    assert len(engine.truncated) == 1
    assert "40 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no room"), RuntimeError("could not create a primitive")],
    ids=["GPU", "CPU"],
)
def test_out_of_memory_halves_the_batch_and_goes_on(tiny_pipeline, capsys, error):
    engine = engine_for(tiny_pipeline, batch_size=4)
    wanted = engine.generate(CAPTIONS, CAPTIONS, SEEDS)
    sizes = []

    def no_room_for_more_than_two(_module, inputs):
        sizes.append(len(inputs[0]) // 2)  # guidance doubles the batch
        if sizes[-1] > 2:
            raise error

    engine._pipe.unet.register_forward_pre_hook(no_room_for_more_than_two)
    painted = engine.generate(CAPTIONS, CAPTIONS, SEEDS)
    assert all(close(a.pixels, b.pixels) for a, b in zip(painted, wanted, strict=True))
    assert max(sizes[1:]) == 2 and "2 images at a time" in capsys.readouterr().err


def test_no_memory_for_one_image_is_one_line(tiny_pipeline):
    engine = engine_for(tiny_pipeline, batch_size=1)

    def no_room(_module, _inputs):
        raise torch.OutOfMemoryError("no room")

    engine._pipe.unet.register_forward_pre_hook(no_room)
    with pytest.raises(EngineError, match="no memory for one image"):
        engine.generate(["a cat"], [""], [1])
