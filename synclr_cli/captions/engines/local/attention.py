"""The attention a language model calls here: what prompts share is kept and computed once.

    query, key, value --the pass of this thread--> kept keys and values --> two parts, merged

A prompt is a prefix that many rows share (instruction, demonstrations) and a few tokens of its own.
Keys and values of a prefix are kept once, and all its rows attend to them in one product (as in
Hydragen, Juravsky et al. 2024); each row's own lie in a slot that it has as long as it lives, so
nothing is moved when rows end and others begin. The two parts of a softmax merge exactly:

    o = (o1 e^(m1-m) + o2 e^(m2-m)) / (s1 e^(m1-m) + s2 e^(m2-m)),  m = max(m1, m2)

with o the unnormalised output, m the largest score and s the sum of e^(score - m) of a part.
The model is any `transformers` causal LM that takes its attention from the library's interface;
the keys are kept here, so no cache class is needed.
R rows, H query heads, h key heads, G = H / h, D head width, L new tokens, M = G L queries per key
head, P prefix tokens, S slots, T own tokens.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from synclr_cli.errors import EngineError

_GROWTH = 16  # tokens by which slots grow
_numbers = itertools.count()


@dataclass(frozen=True)
class Scores:
    """How products become scores: softcap tanh(scale x / softcap), or scale x."""

    scale: float
    softcap: float | None

    def of(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return [..., M, T] in float32 for [..., M, D] and [..., D, T]."""
        scores = (queries @ keys).float().mul_(self.scale)
        return scores if self.softcap is None else self.softcap * (scores / self.softcap).tanh_()


class Pass(Protocol):
    """One run of the model over some tokens: what it keeps, and what it attends to."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Return [R, h, M, D] for queries [R, h, M, D], keys and values [R, h, L, D]."""
        ...


class Attention:
    """The function registered with the library; each thread has its own pass."""

    def __init__(self) -> None:
        self.name = f"synclr_{next(_numbers)}"
        AttentionInterface.register(self.name, self)
        self._here = threading.local()

    @contextmanager
    def during(self, work: Pass, model: nn.Module, length: int) -> Iterator[None]:
        """Attend as `work` says, in this thread, to sequences of at most so many tokens.

        Raises:
            EngineError: the model did not call us, so it computed something else.
        """
        self._here.work, self._here.called, self._here.length = work, False, length
        yield
        if not self._here.called:
            raise EngineError(
                f"{type(model).__name__} does not take its attention from the interface of"
                " transformers",
                do="use vllm: or server: for it",
            )

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        sliding_window: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Attend [R, H, L, D] queries; return [R, L, H, D]."""
        del attention_mask, others
        self._here.called = True
        if s_aux is not None:
            raise EngineError(
                "this model's attention has sinks, which transformers: does not compute",
                do="use vllm: or server: for it",
            )
        if sliding_window and self._here.length > sliding_window:
            raise EngineError(
                f"this model looks back {sliding_window} tokens only, and prompts are longer",
                do="show fewer demonstrations (captions.examples), or use vllm: or server: for it",
            )
        layer: int = module.layer_idx  # type: ignore[assignment]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        rows, heads, length, width = query.shape
        shared = key.shape[1]
        queries = query.reshape(rows, shared, -1, width)  # [R, h, M, D]
        mixed = self._here.work.attend(layer, queries, key, value, Scores(scale, softcap))
        mixed = mixed.to(value.dtype).view(rows, heads, length, width)
        return mixed.transpose(1, 2), None  # [R, L, H, D]


@dataclass
class Part:
    """A softmax over some of the tokens, not normalised."""

    out: Tensor  # [R, h, M, D]
    top: Tensor  # [R, h, M, 1] largest score
    total: Tensor  # [R, h, M, 1]

    @staticmethod
    def over(scores: Tensor, values: Tensor) -> Part:
        """Weigh values [..., T, D] by scores [..., M, T]."""
        top = scores.amax(dim=-1, keepdim=True)
        weights = (scores - top).exp_()
        return Part((weights.to(values.dtype) @ values).float(), top, weights.sum(-1, keepdim=True))

    def rows(self, which: slice | Tensor) -> Part:
        """Return some rows."""
        return Part(self.out[which], self.top[which], self.total[which])

    def merged(self, other: Part) -> Tensor:
        """Return the softmax over the tokens of both [R, h, M, D]."""
        top = torch.maximum(self.top, other.top)
        factor, other_factor = (self.top - top).exp_(), (other.top - top).exp_()
        out = self.out * factor + other.out * other_factor
        return out / (self.total * factor + other.total * other_factor)

    def alone(self) -> Tensor:
        """Return the softmax [R, h, M, D]."""
        return self.out / self.total


@dataclass
class Prefix:
    """Keys [h, D, P] and values [h, P, D] of a group's common tokens, by layer."""

    length: int
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def part(self, layer: int, query: Tensor, scores: Scores) -> Part:
        """Attend [R, h, M, D] queries to it, as one product for all rows."""
        rows, shared, queries, width = query.shape
        together = query.transpose(0, 1).reshape(shared, -1, width)  # [h, RM, D]
        part = Part.over(scores.of(together, self.keys[layer]), self.values[layer])
        return Part(
            *(
                x.view(shared, rows, queries, -1).transpose(0, 1)  # [R, h, M, D or 1]
                for x in (part.out, part.top, part.total)
            )
        )


@dataclass(frozen=True)
class Span:
    """Rows that stand together because they share a prefix."""

    prefix: Prefix | None
    start: int
    stop: int


class Slots:
    """Room for the own tokens of so many rows: keys [S, h, D, T] and values [S, h, T, D]."""

    def __init__(self, rows: int):
        self.rows, self.length = rows, 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def grow(self, length: int) -> None:
        """Make room for so many tokens; a product over all the room needs no copy."""
        if length <= self.length:
            return
        more = -(-length // _GROWTH) * _GROWTH - self.length
        self.length += more
        for layer, keys in self.keys.items():
            self.keys[layer] = nn.functional.pad(keys, (0, more))
            self.values[layer] = nn.functional.pad(self.values[layer], (0, 0, 0, more))

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, made when it is first seen."""
        if number not in self.keys:
            shared, width = like.shape[1], like.shape[3]
            self.keys[number] = like.new_zeros((self.rows, shared, width, self.length))
            self.values[number] = like.new_zeros((self.rows, shared, self.length, width))
        return self.keys[number], self.values[number]


class ReadPrefix:
    """Reads the common tokens of a group, and keeps them."""

    def __init__(self, length: int, device: torch.device):
        self.prefix = Prefix(length)
        self._bias = hidden(torch.ones(length, length, device=device).tril() == 0)[None]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Attend causally."""
        self.prefix.keys[layer] = key[0].transpose(1, 2).contiguous()
        self.prefix.values[layer] = value[0].contiguous()
        return _within(query, key, value, scores, self._bias).alone()


class ReadRows:
    """Reads the own tokens of new rows of one prefix, and keeps them in their slots."""

    def __init__(self, slots: Slots, places: Tensor, prefix: Prefix | None, bias: Tensor):
        """Take the rows' slots [R], and what each token may not see [R, L, L], 0 or -inf."""
        self._slots, self._places, self._prefix, self._bias = slots, places, prefix, bias

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Attend to the prefix, and causally to own tokens."""
        keys, values = self._slots.layer(layer, key)
        length = key.shape[2]
        keys[self._places, :, :, :length] = key.transpose(2, 3)
        values[self._places, :, :length] = value
        own = _within(query, key, value, scores, self._bias)
        if self._prefix is None:
            return own.alone()
        return own.merged(self._prefix.part(layer, query, scores))


class Append:
    """Appends one token to every row."""

    def __init__(
        self, slots: Slots, places: Tensor, at: Tensor, bias: Tensor, spans: Sequence[Span]
    ):
        """Take the rows' slots [R], where in them to write [R], what the slots hide [S, T]."""
        self._slots, self._places, self._at, self._spans = slots, places, at, spans
        self._bias = bias[:, None, None]  # [S, 1, 1, T]
        # Rows in the order of their slots, none empty: nothing to gather.
        self._aligned = len(places) == len(bias) and bool(
            (places == torch.arange(len(places), device=places.device)).all()
        )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Attend to the prefix of each span, and to own tokens in one product over all slots."""
        keys, values = self._slots.layer(layer, key)
        keys[self._places, :, :, self._at] = key[:, :, 0]
        values[self._places, :, self._at] = value[:, :, 0]
        used = self._bias.shape[0]
        queries = query
        if not self._aligned:
            queries = query.new_zeros((used, *query.shape[1:]))  # [S, h, M, D]
            queries[self._places] = query
        own = Part.over(scores.of(queries, keys[:used]).add_(self._bias), values[:used])
        if not self._aligned:
            own = own.rows(self._places)
        mixed = []
        for span in self._spans:
            which = slice(span.start, span.stop)
            part = own.rows(which)
            mixed.append(
                part.merged(span.prefix.part(layer, query[which], scores))
                if span.prefix
                else part.alone()
            )
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def hidden(unseen: Tensor) -> Tensor:
    """Return 0 where a token is seen and -inf where it is not, for a mask of the unseen."""
    return torch.zeros(unseen.shape, device=unseen.device).masked_fill_(unseen, float("-inf"))


def _within(query: Tensor, key: Tensor, value: Tensor, scores: Scores, bias: Tensor) -> Part:
    """Attend to the tokens of this pass; bias [R, L, L] holds for every head."""
    group = query.shape[2] // key.shape[2]
    every_head = bias.repeat(1, group, 1)[:, None]  # [R, 1, M, L]
    return Part.over(scores.of(query, key.transpose(2, 3)) + every_head, value)
