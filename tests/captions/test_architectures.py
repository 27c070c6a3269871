"""`transformers:` with today's small language models: what the plain model writes, row by row.

Each is a model of random weights in the layout of the real one: grouped keys, norms of queries and
keys, layers without positions, sliding windows.
"""

import pytest
import torch
import transformers
from test_caption_engines import engine_of, folder, oracle, some_prompts  # noqa: F401

COMMON = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.3,
    "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES = {
    "Llama": {},
    "Qwen3": {"head_dim": 16},
    "SmolLM3": {"no_rope_layers": [1, 1, 1, 0]},  # every fourth layer knows no positions
    # The 1B model's window; a prompt of three examples has some 120 tokens.
    "Gemma3": {
        "head_dim": 16, "sliding_window": 512, "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model_folder(request, folder, tmp_path_factory):  # noqa: F811
    name = request.param
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    if not hasattr(transformers, config_name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = getattr(transformers, config_name)(
        vocab_size=len(tokenizer), **COMMON, **ARCHITECTURES[name]
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("architecture") / name
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_greedy_completions_are_those_of_the_plain_model(model_folder):
    prompts = some_prompts(8, "in1k:3,dtd:1,places365:1")
    texts = engine_of(model_folder, temperature=0).generate(prompts, range(8))
    expected = [oracle(model_folder, p.text, 0, temperature=0, top_p=1, count=12) for p in prompts]
    assert texts == expected and len(set(expected)) > 3


def test_sampled_completions_are_those_of_the_plain_model_in_a_batch_and_alone(model_folder):
    prompts = some_prompts(8, "in1k:3,dtd:1,places365:1")
    engine = engine_of(model_folder)
    texts = engine.generate(prompts, range(8))
    expected = [
        oracle(model_folder, p.text, s, temperature=0.8, top_p=0.9, count=12)
        for s, p in enumerate(prompts)
    ]
    assert texts == expected
    assert [engine.generate([p], [s])[0] for s, p in enumerate(prompts)] == texts
