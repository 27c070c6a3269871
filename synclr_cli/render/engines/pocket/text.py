"""Captions -> vectors, with the language model that is here anyway.

    caption --SmolLM2, 26 of 30 layers--> [T, 576] --mean--> [576] --whiten--> [128]

The middle of a language model says what a sentence is about; its last layers say which word comes
next. No second encoder has to be shipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from transformers import LlamaModel, PreTrainedTokenizerFast

from synclr_cli.learning import smollm2

LAYERS = 26
MOST_TOKENS = 64  # of a caption; what is beyond is not read
TOGETHER = 16  # captions in one pass: more are no faster on a CPU, and more of them is padding
LENGTH_STEP = 8  # tokens; captions of one pass differ by less


class Whitening(ModelMixin, ConfigMixin):
    """An affine map of mean hidden states [B, D] to `width` decorrelated numbers [B, W].

    To be kept in float32: a few of the means are a hundred times the deviation.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, hidden: int = 576, width: int = 128):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(hidden), requires_grad=False)  # [D]
        self.projection = nn.Parameter(torch.zeros(hidden, width), requires_grad=False)  # [D, W]

    def forward(self, states: Tensor) -> Tensor:
        """Return whitened states [B, W]."""
        return (states - self.mean) @ self.projection

    @classmethod
    def fit(cls, states: Tensor, width: int) -> Whitening:
        """Return the map of `states` [N, D] to `width` numbers of mean 0, deviation 1 (PCA)."""
        whitening = cls(states.shape[1], width)
        exact = states.double()
        centred = exact - exact.mean(0)
        variance, axes = torch.linalg.eigh(centred.T @ centred / len(states))  # [D], [D, D]
        largest = axes.flip(1)[:, :width] / variance.flip(0)[:width].sqrt()  # [D, W]
        whitening.mean.data = exact.mean(0).float()
        whitening.projection.data = largest.float().contiguous()
        return whitening


def read_language_model(
    dtype: torch.dtype = torch.float32,
) -> tuple[LlamaModel, PreTrainedTokenizerFast]:
    """Return SmolLM2 without its last layers, and its tokenizer.

    Raises:
        EngineError: its package is not there.
    """
    model, tokenizer = smollm2.read_gguf(smollm2.weights_file(), "sdpa", dtype)
    body = model.model
    del body.layers[LAYERS:]
    body.config.num_hidden_layers = LAYERS
    return body.eval(), tokenizer


@torch.inference_mode()
def mean_states(
    model: LlamaModel, tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]
) -> Tensor:
    """Return the mean hidden state of each caption's tokens [N, D], float32.

    Captions of about one length go through the model together, so that little is padding. Padding
    is to the right: a causal model's row does not depend on its neighbours' length. In bfloat16 a
    product's last bits depend on its shape, and a vector would move by up to 4 % with its company:
    there each caption is always one of sixteen rows, and as long as the next multiple of eight.
    """
    start = tokenizer.eos_token_id  # the first position of a Llama is an outlier: it gets no word
    tokens = [tokenizer(text).input_ids[:MOST_TOKENS] or [start] for text in captions]
    fixed = model.dtype == torch.bfloat16
    by_length: dict[int, list[int]] = {}  # tokens -> rows
    for row in sorted(range(len(tokens)), key=lambda row: len(tokens[row])):
        by_length.setdefault(-(-len(tokens[row]) // LENGTH_STEP), []).append(row)
    states = torch.empty(len(tokens), model.config.hidden_size)
    for steps, rows in by_length.items():
        for first in range(0, len(rows), TOGETHER):
            group = rows[first : first + TOGETHER]
            own = [tokens[row] for row in group]
            width = steps * LENGTH_STEP if fixed else max(map(len, own))
            filled = own + [[start]] * (TOGETHER - len(own)) if fixed else own
            states[group] = _means(model, filled, width, start)[: len(own)].cpu()
    return states


def _means(model: LlamaModel, tokens: list[list[int]], width: int, start: int) -> Tensor:
    """Return the mean of each row's last hidden states [N, D] before the model's norm."""
    ids = torch.full((len(tokens), 1 + width), start)  # [N, 1 + T]
    mask = torch.zeros(len(tokens), width, 1)  # [N, T, 1]
    for row, own in enumerate(tokens):
        ids[row, 1 : 1 + len(own)] = torch.tensor(own)
        mask[row, : len(own)] = 1
    device = model.embed_tokens.weight.device
    seen: list[Tensor] = []  # before the last norm, whose scale belongs to the layers left out
    hook = model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(input_ids=ids.to(device), use_cache=False)
    finally:
        hook.remove()
    states, mask = seen[0][:, 1:].float(), mask.to(device)  # [N, T, D]
    return (states * mask).sum(1) / mask.sum(1)  # [N, D]
