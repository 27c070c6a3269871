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

from synclr_cli.captions.draws import uniform

_CANDIDATES = 64  # nearly every nucleus fits; rows where it does not are sorted in full


def noise(seeds: Sequence[int], steps: Sequence[int]) -> Tensor:
    """Return one uniform number in [0, 1) per row [R], of that row's seed and step, as float64."""
    rows = np.asarray(seeds, dtype=np.int64)
    at = np.asarray(steps, dtype=np.int64)
    drawn = np.empty(len(rows), dtype=np.float64)  # [R]
    for step in np.unique(at).tolist():
        drawn[at == step] = uniform(step, _STREAM, rows[at == step])
    return torch.from_numpy(drawn)


_STREAM = 7


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
    scaled = logits.float() / temperature
    total = scaled.logsumexp(dim=-1, keepdim=True)  # [R, 1]
    size = min(_CANDIDATES, scaled.shape[-1])
    best, tokens = scaled.topk(size, dim=-1)  # [R, K]
    drawn = _invert((best - total).exp(), tokens, uniforms, top_p)
    wide = ((best - total).exp().sum(dim=-1) < top_p).nonzero()[:, 0]  # nucleus beyond K
    if size < scaled.shape[-1] and len(wide):
        best, tokens = scaled[wide].sort(dim=-1, descending=True)  # [wide, V]
        drawn[wide] = _invert((best - total[wide]).exp(), tokens, uniforms[wide], top_p)
    return drawn


def _invert(probabilities: Tensor, tokens: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Draw from sorted candidates [R, K] by the inverse of their cumulative distribution."""
    cumulative = probabilities.double().cumsum(dim=-1)  # [R, K]
    kept = (cumulative - probabilities.double() < top_p).sum(dim=-1, keepdim=True)  # [R, 1]
    mass = cumulative.gather(1, kept - 1)  # [R, 1]
    aim = uniforms.to(cumulative)[:, None] * mass
    place = torch.searchsorted(cumulative, aim, right=True)  # [R, 1]
    return tokens.gather(1, torch.minimum(place, kept - 1))[:, 0]
