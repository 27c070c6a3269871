"""Write completions with a causal language model, many at once, computing shared prefixes once.

    prompts --tokens--> groups with a common prefix --read--> rows in slots --append--> completions

Prompts of one block of ids show the same demonstrations, so all but their last line is the same;
`attention.py` computes that once. Rows that end make room for new ones. On a CPU each thread
completes its own share of the prompts, which scales where threads inside one product do not.
R rows, V vocabulary, L new tokens, T own tokens, S slots.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from synclr_cli.captions.engines.local import sampling
from synclr_cli.captions.engines.local.attention import (
    Append,
    Attention,
    Pass,
    Prefix,
    ReadPrefix,
    ReadRows,
    Slots,
    Span,
    hidden,
)
from synclr_cli.config import CaptionEngineConfig
from synclr_cli.engines import CaptionEngine, Prompt
from synclr_cli.learning import runtime

_SHARED_BY = 4  # rows from which on a common prefix is worth a pass of its own
_READ_TOGETHER = 32  # rows whose last lines go through the model in one pass
_REFILL_SHARE = 1 / 8  # of the slots are free when new rows are read
_ROWS_PER_THREAD = 32  # fewer are not worth a thread: a pass costs nearly as much for one row


class Group(NamedTuple):
    """Prompts that start alike."""

    shared: int  # tokens
    numbers: list[int]  # of the prompts


@dataclass
class _Row:
    number: int  # of the prompt
    seed: int
    slot: int
    position: int  # of its next token in the sequence, prefix included
    prefix: Prefix | None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class Decoder(CaptionEngine):
    """Completes prompts up to the newline with a model that was loaded with `attention`.

    An engine on top of it loads the model, and says what it loaded in `revision`.
    """

    batch_size = 128  # of each thread of a CPU

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        attention: Attention,
        config: CaptionEngineConfig,
    ):
        self.model, self.tokenizer, self.attention = model.eval(), tokenizer, attention
        self.config = config
        self.device = model.device
        self.stops = _stops(model, tokenizer)
        self._slots: list[Slots] = []  # of each thread

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Return one completion per prompt: what its row's seed samples before a newline."""
        if not prompts:
            return []
        texts = [prompt.text for prompt in prompts]
        prompt_tokens: list[list[int]] = self.tokenizer(texts)["input_ids"]
        groups = _groups(texts, prompt_tokens)
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        shares = list(_shares(groups, max(1, min(threads, len(texts) // _ROWS_PER_THREAD))))
        while len(self._slots) < len(shares):
            self._slots.append(Slots(self.config.batch_size))
        tokens: list[list[int]] = [[] for _ in texts]
        stop = threading.Event()

        def work(share: list[Group], room: Slots) -> None:
            try:
                torch.set_num_threads(max(1, threads // len(shares)))  # of this thread's products
                with torch.inference_mode():
                    _Batch(self, room, stop).generate(share, prompt_tokens, seeds, tokens)
            except BaseException:
                stop.set()  # the other threads end after their step
                raise

        if len(shares) == 1:
            with torch.inference_mode():
                _Batch(self, self._slots[0], stop).generate(shares[0], prompt_tokens, seeds, tokens)
        else:
            try:
                with ThreadPoolExecutor(len(shares)) as pool:
                    try:
                        list(pool.map(work, shares, self._slots))
                    except BaseException:  # Ctrl-C reaches this thread alone
                        stop.set()
                        raise
            finally:
                torch.set_num_threads(threads)
        written = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.split("\n", 1)[0].strip() for text in written]

    def forward(self, work: Pass, ids: Tensor, positions: Tensor) -> Tensor:
        """Return the logits after the last token of each row: [R, L] -> [R, V]."""
        with self.attention.during(work, self.model, int(positions.max()) + 1):
            out = self.model(
                input_ids=ids.to(self.device), position_ids=positions.to(self.device),
                use_cache=False, logits_to_keep=1,
            )  # fmt: skip
        return out.logits[:, -1]


class _Batch:
    """The rows that one thread has in work."""

    def __init__(self, decoder: Decoder, slots: Slots, stop: threading.Event):
        self.decoder, self.slots, self.stop = decoder, slots, stop
        self.rows: list[_Row] = []  # those of a prefix next to each other
        self.free = list(range(slots.rows))[::-1]
        self.begin = torch.zeros(slots.rows, dtype=torch.long)  # [S] first place that is no padding
        self.length = torch.zeros(slots.rows, dtype=torch.long)  # [S] places in use

    def generate(
        self,
        groups: Sequence[Group],
        prompts: list[list[int]],
        seeds: Sequence[int],
        tokens: list[list[int]],
    ) -> None:
        """Put into `tokens` what is sampled for the prompts of these groups."""
        waiting = self._waiting(groups, prompts)
        upcoming = next(waiting, None)
        while (self.rows or upcoming) and not self.stop.is_set():
            room = len(self.free)
            if upcoming and (not self.rows or room >= self.slots.rows * _REFILL_SHARE):
                prefix, numbers = upcoming
                now, later = numbers[:room], numbers[room:]
                self._read(prefix, now, prompts, seeds)
                upcoming = (prefix, later) if later else next(waiting, None)
            else:
                self._append()
            for row in self.rows:
                if row.ended:
                    tokens[row.number] = row.tokens
                    self.free.append(row.slot)
            self.rows = [row for row in self.rows if not row.ended]

    def _waiting(
        self, groups: Sequence[Group], prompts: list[list[int]]
    ) -> Iterator[tuple[Prefix | None, list[int]]]:
        """Yield prompts to read together, with the prefix they share."""
        for shared, numbers in groups:
            prefix = self._read_prefix(prompts[numbers[0]][:shared]) if shared else None
            # Of one length, so that little of a pass is padding.
            numbers = sorted(numbers, key=lambda i: len(prompts[i]))
            for start in range(0, len(numbers), _READ_TOGETHER):
                yield prefix, numbers[start : start + _READ_TOGETHER]

    def _read_prefix(self, tokens: list[int]) -> Prefix:
        work = ReadPrefix(len(tokens), self.decoder.device)
        ids = torch.tensor([tokens])  # [1, P]
        self.decoder.forward(work, ids, torch.arange(len(tokens))[None])
        return work.prefix

    def _read(
        self,
        prefix: Prefix | None,
        numbers: list[int],
        prompts: list[list[int]],
        seeds: Sequence[int],
    ) -> None:
        """Read the rest of these prompts, and draw the first token of each."""
        past = prefix.length if prefix else 0
        tokens = [prompts[i][past:] for i in numbers]
        longest = max(map(len, tokens))
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
        self.slots.grow(longest)
        slots = [self.free.pop() for _ in numbers]
        where = torch.tensor(slots)  # [R]
        device = self.decoder.device
        work = ReadRows(self.slots, where.to(device), prefix, hidden(~seen).to(device))
        logits = self.decoder.forward(work, ids, positions)
        self.begin[where], self.length[where] = pads, longest
        new = [
            _Row(number, seeds[number], slot, past + len(row), prefix)
            for number, slot, row in zip(numbers, slots, tokens, strict=True)
        ]
        self._draw(logits, new)
        self.rows += new

    def _append(self) -> None:
        """Append one token to every row."""
        device = self.decoder.device
        where = torch.tensor([row.slot for row in self.rows])  # [R]
        at = self.length[where]  # [R]
        used = int(where.max()) + 1
        self.slots.grow(int(at.max()) + 1)
        places = torch.arange(self.slots.length)[None]  # [1, T]
        # An empty slot sees its first place, so that no softmax is over nothing.
        last = torch.zeros(used, dtype=torch.long)
        last[where] = at
        first = torch.zeros(used, dtype=torch.long)
        first[where] = self.begin[where]
        unseen = (places < first[:, None]) | (places > last[:, None])  # [S, T]
        work = Append(
            self.slots, where.to(device), at.to(device), hidden(unseen).to(device),
            self._spans(),
        )  # fmt: skip
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows])  # [R, 1]
        positions = torch.tensor([[row.position] for row in self.rows])
        logits = self.decoder.forward(work, ids, positions)  # [R, V]
        self.length[where] += 1
        for row in self.rows:
            row.position += 1
        self._draw(logits, self.rows)

    def _spans(self) -> list[Span]:
        spans: list[Span] = []
        start = 0
        for _, rows in itertools.groupby(self.rows, key=lambda row: id(row.prefix)):
            members = list(rows)
            spans.append(Span(members[0].prefix, start, start + len(members)))
            start += len(members)
        return spans

    def _draw(self, logits: Tensor, rows: list[_Row]) -> None:
        config, stops = self.decoder.config, self.decoder.stops
        uniforms = sampling.noise([row.seed for row in rows], [len(row.tokens) for row in rows])
        sampled = sampling.sample(
            logits, uniforms, temperature=config.temperature, top_p=config.top_p
        )
        for row, token in zip(rows, sampled.tolist(), strict=True):
            row.tokens.append(token)
            row.ended = token in stops or len(row.tokens) >= config.max_new_tokens


def computing(dtype: str) -> tuple[torch.device, torch.dtype]:
    """Return where a language model runs, and in which number format; "auto" asks the hardware."""
    device = runtime.pick_device()
    if dtype != "auto":
        return device, getattr(torch, dtype)
    if runtime.has_fast_bfloat16(device):
        return device, torch.bfloat16
    return device, torch.float16 if device.type == "cuda" else torch.float32


def _groups(texts: Sequence[str], prompts: list[list[int]]) -> list[Group]:
    """Return groups of prompts that differ in their last line only.

    Prompts that share with too few others go together, with nothing in common.
    """
    by_prefix: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        by_prefix.setdefault(text[: text.rfind("\n") + 1], []).append(number)
    groups: list[Group] = []
    alone: list[int] = []
    for text, numbers in by_prefix.items():
        if not text or len(numbers) < _SHARED_BY:
            alone += numbers
        else:
            groups.append(Group(_in_common([prompts[i] for i in numbers]), numbers))
    if alone:
        groups.append(Group(0, alone))
    return groups


def _in_common(prompts: list[list[int]]) -> int:
    """Return how many tokens prompts start with alike, whatever the tokenizer does at the border.

    One token stays with the row, whose logits come from it.
    """
    first = min(prompts)
    last = max(prompts)  # what the extremes in order share, all between them share
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return min(sum(1 for _ in alike), min(map(len, prompts)) - 1)


def _shares(groups: list[Group], count: int) -> Iterator[list[Group]]:
    """Yield the groups as `count` lists of about as many prompts; a group may be in two of them."""
    total = sum(len(group.numbers) for group in groups)
    for share in range(count):
        low, high = total * share // count, total * (share + 1) // count
        start = 0
        portion: list[Group] = []
        for shared, numbers in groups:
            inside = numbers[max(0, low - start) : max(0, high - start)]
            if inside:
                portion.append(Group(shared, inside))
            start += len(numbers)
        yield portion


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
