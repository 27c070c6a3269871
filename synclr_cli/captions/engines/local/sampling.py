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

from synclr_cli import rng

_CANDIDATES = (64, 1024)  # nearly every nucleus fits; rows where it does not are sorted in full
_ROWS_TOGETHER = 16  # so that their probabilities stay in the cache of a core
_CLASSES = 64  # the vocabulary is looked through in so many classes, by token modulo


def noise(seeds: Sequence[int], steps: Sequence[int]) -> Tensor:
    """Return one uniform number in [0, 1) per row [R], of that row's seed and step, as float64."""
    return torch.from_numpy(rng.uniform("captions.token", np.asarray(seeds), np.asarray(steps)))


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
    if logits.device.type == "mps":  # which has no float64
        logits = logits.cpu()
    size = _ROWS_TOGETHER if logits.device.type == "cpu" else len(logits)
    uniforms = uniforms.to(logits.device)
    return torch.cat(
        [
            _sample(some, u, temperature, top_p)
            for some, u in zip(logits.split(size), uniforms.split(size), strict=True)
        ]
    )


def _sample(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    probabilities = logits.float().div(temperature).softmax(dim=-1)  # [R, V]
    rows, size = probabilities.shape
    sampled = torch.empty(rows, dtype=torch.long, device=logits.device)
    left = torch.arange(rows, device=logits.device)
    for count in (*_CANDIDATES, size):
        best, tokens = most_likely(probabilities[left], min(count, size))  # [left, K]
        sampled[left] = _invert(best, tokens, uniforms[left], top_p)
        left = left[best.sum(dim=-1) < top_p]  # the nucleus goes on beyond K
        if not len(left) or count >= size:
            break
    return sampled


def most_likely(probabilities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest of each row, largest first, and where they are: [R, K] each.

    The K largest lie in the K columns of largest maxima, whatever the columns; so nearly all of a
    large vocabulary is read once, and not sorted.
    """
    rows, size = probabilities.shape
    columns = size // _CLASSES
    if count * 4 > columns or size % _CLASSES:
        return probabilities.topk(count)
    table = probabilities.view(rows, _CLASSES, columns)
    _, best = table.amax(dim=1).topk(count, sorted=False)  # [R, K]
    inside = table.gather(2, best[:, None].expand(-1, _CLASSES, -1))  # [R, 64, K]
    largest, place = inside.flatten(1).topk(count)  # [R, K]
    column = best.gather(1, place % count)
    return largest, place // count * columns + column


def _invert(probabilities: Tensor, tokens: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Draw from sorted candidates [R, K] by the inverse of their cumulative distribution."""
    cumulative = probabilities.double().cumsum(dim=-1)  # [R, K]
    kept = (cumulative - probabilities.double() < top_p).sum(dim=-1, keepdim=True)  # [R, 1]
    mass = cumulative.gather(1, kept - 1)  # [R, 1]
    aim = uniforms.to(cumulative)[:, None] * mass
    place = torch.searchsorted(cumulative, aim, right=True)  # [R, 1]
    return tokens.gather(1, torch.minimum(place, kept - 1))[:, 0]
