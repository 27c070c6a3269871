"""Write completions with a causal language model, many at once, computing shared prefixes once.

    prompts --tokens--> groups with a common prefix --prefill--> rows --sample--> completions

Prompts of one block of ids show the same demonstrations, so all but their last line is the same.
That prefix runs through the model once; its keys and values are kept once per group, and the rows
of the group attend to them in one matrix product (as Hydragen, Juravsky et al. 2024, does), then to
their own few tokens. Rows that end make room for new ones.

The model is any `transformers` causal LM that takes its attention from the library's attention
interface: the function registered here stores keys and values itself, so no cache class is needed.
R rows, H query heads, h key heads, D head width, L new tokens, P prefix tokens, T own tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase

from synclr_cli.captions import sampling
from synclr_cli.errors import EngineError

_SHARED_BY = 4  # rows from which on a common prefix is worth a pass of its own
_READ_TOGETHER = 32  # rows whose last lines go through the model in one pass
_REFILL_SHARE = 1 / 8  # of the rows have ended when the others are moved together and joined
_numbers = itertools.count()


@dataclass
class _Prefix:
    """Keys and values of a group's common tokens, by layer: [h, P, D] each."""

    length: int = 0
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class _Row:
    number: int  # of the prompt
    seed: int
    position: int  # of its next token in the sequence, prefix included
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


@dataclass
class _Span:
    """Rows that stand together because they share a prefix."""

    prefix: _Prefix | None
    start: int
    stop: int


class Attention:
    """The attention the model calls: keeps what it sees, and attends to prefix and own tokens."""

    def __init__(self) -> None:
        self.name = f"synclr_{next(_numbers)}"
        AttentionInterface.register(self.name, self)
        self.called = False  # in this pass
        self.recording: _Prefix | None = None  # where the pass over a prefix puts its keys
        self.keys: dict[int, Tensor] = {}  # [rows, h, D, T] by layer, as the product wants them
        self.values: dict[int, Tensor] = {}  # [rows, h, T, D]
        self.capacity = (0, 0)  # rows, T
        self.first = 0  # the rows of this pass start here
        self.spans: list[_Span] = []
        self.reading = False  # this pass reads whole prompts; else it appends one token to each
        self.write_at = torch.empty(0)  # [R] where among own tokens
        self.seen = torch.empty(0)  # [R, L, T] bool

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
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Attend [R, H, L, D] queries; return [R, L, H, D]."""
        del attention_mask, others
        self.called = True
        if s_aux is not None:
            raise EngineError(
                "this model's attention has sinks, which transformers: does not compute",
                do="use vllm: or server: for it",
            )
        layer: int = module.layer_idx  # type: ignore[assignment]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.recording is not None:
            self.recording.keys[layer], self.recording.values[layer] = key[0], value[0]
            causal = torch.ones(key.shape[2], key.shape[2], dtype=torch.bool, device=key.device)
            columns = key.transpose(2, 3)
            return self._attend(
                query, columns, value, None, layer, scale, softcap, causal.tril()
            ), None
        self._store(layer, key, value)
        first, count, length = self.first, query.shape[0], self.seen.shape[2]
        keys = self.keys[layer][first : first + count, :, :, :length]  # [R, h, D, T]
        values = self.values[layer][first : first + count, :, :length]  # [R, h, T, D]
        parts = []
        for span in self.spans:
            a, b = span.start - first, span.stop - first
            parts.append(
                self._attend(
                    query[a:b], keys[a:b], values[a:b], span.prefix, layer, scale, softcap,
                    self.seen[a:b],
                )
            )  # fmt: skip
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), None

    def _attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        prefix: _Prefix | None,
        layer: int,
        scale: float,
        softcap: float | None,
        seen: Tensor,
    ) -> Tensor:
        """softmax([q k_prefix, q k_own]) [v_prefix; v_own], the prefix's part as one product."""
        rows, heads, length, width = query.shape
        shared = keys.shape[1]
        group = heads // shared
        asked = query.reshape(rows, shared, group * length, width)  # [R, h, GL, D]
        own = asked @ keys  # [R, h, GL, T]
        hidden = ~(seen if seen.dim() == 3 else seen[None])  # [R or 1, L, T]
        own = own.float().view(rows, shared, group, length, -1)
        own = own.masked_fill(hidden[:, None, None], float("-inf"))
        own = own.view(rows, shared, group * length, -1)
        if prefix is None:
            weights = self._softmax(own, scale, softcap, values.dtype)
            mixed = weights @ values  # [R, h, GL, D]
        else:
            together = asked.transpose(0, 1).reshape(shared, -1, width)  # [h, RGL, D]
            there = together @ prefix.keys[layer].transpose(1, 2)  # [h, RGL, P]
            there = there.float().view(shared, rows, group * length, -1).transpose(0, 1)
            scores = torch.cat([there, own], dim=-1)  # [R, h, GL, P + T]
            weights = self._softmax(scores, scale, softcap, values.dtype)
            on_prefix, on_own = weights.split([prefix.length, own.shape[-1]], dim=-1)
            mixed = on_own @ values  # [R, h, GL, D]
            on_prefix = on_prefix.transpose(0, 1).reshape(shared, -1, prefix.length)
            there = on_prefix @ prefix.values[layer]  # [h, RGL, D]
            mixed = mixed + there.view(shared, rows, group * length, width).transpose(0, 1)
        mixed = mixed.view(rows, heads, length, width)
        return mixed.transpose(1, 2)  # [R, L, H, D]

    @staticmethod
    def _softmax(scores: Tensor, scale: float, softcap: float | None, dtype: torch.dtype) -> Tensor:
        scores = scores * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        return scores.softmax(dim=-1).to(dtype)

    def _store(self, layer: int, key: Tensor, value: Tensor) -> None:
        if layer not in self.keys:
            rows, length = self.capacity
            shared, width = key.shape[1], key.shape[3]
            self.keys[layer] = key.new_zeros((rows, shared, width, length))
            self.values[layer] = value.new_zeros((rows, shared, length, width))
        keys, values = self.keys[layer], self.values[layer]
        first, count, length = self.first, key.shape[0], key.shape[2]
        if self.reading:  # all rows write to the first places
            keys[first : first + count, :, :, :length] = key.transpose(2, 3)
            values[first : first + count, :, :length] = value
        else:
            rows = torch.arange(first, first + count, device=key.device)
            keys[rows, :, :, self.write_at] = key[:, :, 0]
            values[rows, :, self.write_at] = value[:, :, 0]

    def keep(self, rows: Tensor) -> None:
        """Move the rows with these numbers together at the front."""
        for store in (self.keys, self.values):
            for kept in store.values():
                kept[: len(rows)] = kept[rows]

    def reset(self, rows: int, length: int) -> None:
        """Make room for so many rows of so many own tokens."""
        if self.capacity[0] < rows or self.capacity[1] < length:
            self.capacity = (max(rows, self.capacity[0]), max(length, self.capacity[1]))
            self.keys.clear()
            self.values.clear()


class Decoder:
    """Completes prompts up to the newline with a model that was loaded with `attention`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        attention: Attention,
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch_size: int,
    ):
        self.model, self.tokenizer, self.attention = model.eval(), tokenizer, attention
        self.temperature, self.top_p = temperature, top_p
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.device = model.device
        self.stops = _stops(model, tokenizer)

    @torch.inference_mode()
    def complete(self, texts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Return one completion per text: what its row's seed samples before a newline."""
        if not texts:
            return []
        prompts: list[list[int]] = self.tokenizer(list(texts))["input_ids"]
        groups = _groups(texts, prompts)
        longest = max(len(prompts[i]) - shared for shared, numbers in groups for i in numbers)
        self.attention.reset(self.batch_size, longest + self.max_new_tokens)
        completions = [""] * len(texts)
        batch = _Batch(self)
        for shared, numbers in groups:
            prefix = None
            # Rows of a length are read together, so that little of a pass is padding.
            waiting = sorted(numbers, key=lambda i: len(prompts[i]))
            while waiting:
                room = self.batch_size - len(batch.rows)
                if room and (not batch.rows or room >= self.batch_size * _REFILL_SHARE):
                    if prefix is None and shared:
                        prefix = self._read_prefix(prompts[waiting[0]][:shared])
                    size = min(room, _READ_TOGETHER)
                    chosen, waiting = waiting[:size], waiting[size:]
                    batch.admit(
                        prefix, [prompts[i][shared:] for i in chosen], chosen,
                        [seeds[i] for i in chosen],
                    )  # fmt: skip
                else:
                    batch.step()
                self._collect(batch, completions)
        while batch.rows:
            batch.step()
            self._collect(batch, completions)
        return completions

    def _read_prefix(self, tokens: list[int]) -> _Prefix:
        prefix = _Prefix(length=len(tokens))
        self.attention.recording = prefix
        ids = torch.tensor([tokens], device=self.device)  # [1, P]
        self.forward(ids, torch.arange(len(tokens), device=self.device)[None])
        self.attention.recording = None
        return prefix

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return the logits after the last token of each row: [R, L] -> [R, V]."""
        self.attention.called = False
        out = self.model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1)
        if not self.attention.called:  # it computed something else, without the prefix
            raise EngineError(
                f"{type(self.model).__name__} does not take its attention from the interface of"
                " transformers",
                do="use vllm: or server: for it",
            )
        return out.logits[:, -1]

    def _collect(self, batch: _Batch, completions: list[str]) -> None:
        ended = [row for row in batch.rows if row.ended]
        enough = len(ended) >= max(1, int(len(batch.rows) * _REFILL_SHARE))
        if not enough:
            return
        texts = self.tokenizer.batch_decode([r.tokens for r in ended], skip_special_tokens=True)
        for row, text in zip(ended, texts, strict=True):
            completions[row.number] = text.split("\n", 1)[0].strip()
        batch.drop_ended()


class _Batch:
    """The rows in work, those of a group next to each other."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self.rows: list[_Row] = []
        self.spans: list[_Span] = []
        self.begin: list[int] = []  # of each row: first own place that is not padding
        self.length: list[int] = []  # of each row: own places in use

    def admit(
        self,
        prefix: _Prefix | None,
        tokens: list[list[int]],
        numbers: Sequence[int],
        seeds: Sequence[int],
    ) -> None:
        """Read the rest of these prompts, and draw the first token of each."""
        decoder, device = self.decoder, self.decoder.device
        past = prefix.length if prefix else 0
        longest = max(map(len, tokens))
        first = len(self.rows)
        ids = torch.full((len(tokens), longest), tokens[0][-1])  # [R, L], padded on the left
        for r, row in enumerate(tokens):
            ids[r, longest - len(row) :] = torch.tensor(row)
        pads = torch.tensor([longest - len(row) for row in tokens])  # [R]
        places = torch.arange(longest)  # [L]
        positions = past + (places[None] - pads[:, None]).clamp(min=0)  # [R, L]
        causal = places[:, None] >= places[None]  # [L, T]
        own = places[None] >= pads[:, None]  # [R, T]
        # A padding place sees itself, so that no softmax is over nothing; nobody sees it.
        seen = (causal[None] & own[:, None]) | torch.eye(longest, dtype=torch.bool)[None]
        span = _Span(prefix, first, first + len(tokens))
        attention = decoder.attention
        attention.first, attention.spans, attention.reading = first, [span], True
        attention.seen = seen.to(device)
        logits = decoder.forward(ids.to(device), positions.to(device))
        if self.spans and self.spans[-1].prefix is prefix:
            self.spans[-1].stop = span.stop
        else:
            self.spans.append(span)
        for number, seed, row in zip(numbers, seeds, tokens, strict=True):
            self.rows.append(_Row(number, seed, past + len(row)))
            self.begin.append(longest - len(row))
            self.length.append(longest)
        self._draw(logits, self.rows[first:])

    def step(self) -> None:
        """Append one token to every row."""
        decoder, device = self.decoder, self.decoder.device
        attention = decoder.attention
        length = torch.tensor(self.length)  # [R]
        places = torch.arange(max(self.length) + 1)  # [T]
        begin = torch.tensor(self.begin)
        seen = (places[None] >= begin[:, None]) & (places[None] <= length[:, None])  # [R, T]
        attention.first, attention.spans, attention.reading = 0, self.spans, False
        attention.seen = seen[:, None].to(device)  # [R, 1, T]
        attention.write_at = length.to(device)
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows], device=device)  # [R, 1]
        positions = torch.tensor([[row.position] for row in self.rows], device=device)
        logits = decoder.forward(ids, positions)  # [R, V]
        for r, row in enumerate(self.rows):
            row.position += 1
            # A row that ended waits to be dropped; it must not outgrow its room meanwhile.
            self.length[r] += not row.ended
        self._draw(logits, self.rows)

    def drop_ended(self) -> None:
        """Move the rows that go on together."""
        kept = [r for r, row in enumerate(self.rows) if not row.ended]
        self.decoder.attention.keep(
            torch.tensor(kept, dtype=torch.long, device=self.decoder.device)
        )
        spans = []
        count = 0
        for span in self.spans:
            size = sum(not row.ended for row in self.rows[span.start : span.stop])
            if size:
                spans.append(_Span(span.prefix, count, count + size))
            count += size
        self.spans = spans
        self.rows = [self.rows[r] for r in kept]
        self.begin = [self.begin[r] for r in kept]
        self.length = [self.length[r] for r in kept]

    def _draw(self, logits: Tensor, rows: list[_Row]) -> None:
        decoder = self.decoder
        uniforms = sampling.noise([row.seed for row in rows], [len(row.tokens) for row in rows])
        tokens = sampling.sample(
            logits, uniforms, temperature=decoder.temperature, top_p=decoder.top_p
        )
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row.ended:
                continue
            row.tokens.append(token)
            row.ended = token in decoder.stops or len(row.tokens) >= decoder.max_new_tokens


def _groups(texts: Sequence[str], prompts: list[list[int]]) -> list[tuple[int, list[int]]]:
    """Return (tokens in common, prompt numbers) of prompts that differ in their last line only.

    Prompts that share with too few others go together, with nothing in common.
    """
    by_prefix: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        by_prefix.setdefault(text[: text.rfind("\n") + 1], []).append(number)
    groups: list[tuple[int, list[int]]] = []
    alone: list[int] = []
    for text, numbers in by_prefix.items():
        if not text or len(numbers) < _SHARED_BY:
            alone += numbers
            continue
        # The tokens tell what is common, whatever the tokenizer does at the border; one token
        # stays with the row, whose logits come from it.
        first = prompts[numbers[0]]
        shared = min(len(prompts[i]) for i in numbers) - 1
        for i in numbers[1:]:
            shared = (
                next(
                    (n for n, (x, y) in enumerate(zip(first, prompts[i], strict=False)) if x != y),
                    shared,
                )
                if first[:shared] != prompts[i][:shared]
                else shared
            )
        groups.append((shared, numbers))
    if alone:
        groups.append((0, alone))
    return groups


def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end a caption: end of text, and whatever holds a newline."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    stops = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    size = len(tokenizer)
    for token, text in enumerate(tokenizer.convert_ids_to_tokens(list(range(size)))):
        # A newline is written "Ċ" by byte-level tokenizers and "<0x0A>" by SentencePiece.
        if text and ("Ċ" in text or "\n" in text or text == "<0x0A>"):
            stops.add(token)
    return {s for s in stops if s is not None}
