"""Draw the next token: temperature, then the exact nucleus (top-p; Holtzman et al. 2020).

    logits [R, V], one uniform number per row [R] -> tokens [R]

The uniform number comes from (row's seed, step) alone, so a row's noise does not know its batch.
R rows, V tokens, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from synclr_cli import draws

_CANDIDATES = (64, 1024)  # nearly every nucleus fits; rows where it does not are sorted in full


def noise(seeds: Sequence[int], steps: Sequence[int]) -> Tensor:
    """Return one uniform number in [0, 1) per row [R], of that row's seed and step, as float64."""
    return torch.from_numpy(draws.uniform("captions.token", np.asarray(seeds), np.asarray(steps)))


def sample(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Return one token per row [R], drawn from softmax(logits / temperature) cut to its nucleus.

    The nucleus is the smallest set of most likely tokens whose probabilities sum to `top_p` or
    more; the draw inverts its cumulative distribution, most likely token first.

    Args:
        logits: [R, V].
        uniforms: [R] in [0, 1).
        temperature: 0 takes the most likely token.
        top_p: in (0, 1].
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / temperature).softmax(dim=-1)  # [R, V]
    drawn = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    left = torch.arange(len(logits), device=logits.device)
    for size in (*_CANDIDATES, probabilities.shape[-1]):
        best, tokens = probabilities[left].topk(min(size, probabilities.shape[-1]))  # [left, K]
        drawn[left] = _invert(best, tokens, uniforms.to(best.device)[left], top_p)
        wide = best.sum(dim=-1) < top_p  # the nucleus goes on beyond K
        left = left[wide]
        if not len(left) or size >= probabilities.shape[-1]:
            break
    return drawn


def _invert(probabilities: Tensor, tokens: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Draw from sorted candidates [R, K] by the inverse of their cumulative distribution."""
    cumulative = probabilities.double().cumsum(dim=-1)  # [R, K]
    kept = (cumulative - probabilities.double() < top_p).sum(dim=-1, keepdim=True)  # [R, 1]
    mass = cumulative.gather(1, kept - 1)  # [R, 1]
    aim = uniforms.to(cumulative)[:, None] * mass
    place = torch.searchsorted(cumulative, aim, right=True)  # [R, 1]
    return tokens.gather(1, torch.minimum(place, kept - 1))[:, 0]
