"""Captions -> the text arguments of a pipeline's call, each caption read once.

    captions of a batch -> encode_prompt of the new ones -> embeddings by argument name [B, ...]

Only families whose embeddings this module knows are read ahead; any other pipeline is given the
words, and reads them itself. B rows, L tokens, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from synclr_cli import console
from synclr_cli.config import RenderEngineConfig

_TEXT, _POOLED, _MASK = "prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"
_QWEN_MASK = "prompt_embeds_mask"
_AXES = {_TEXT: 3, _POOLED: 2, _MASK: 2, _QWEN_MASK: 2}  # [B, L, D], [B, D], [B, L]


@dataclass(frozen=True)
class Family:
    """How pipelines of one kind read text ahead of their call."""

    results: tuple[str, ...]  # what encode_prompt returns, in order, by argument name of the call
    # The unconditional text: encode_prompt returns it too, it is read as a prompt of its own, or
    # there is none.
    negative: Literal["returned", "read", "none"] = "returned"
    blank: str = ""  # the words that are read, where the settings have none
    true_cfg: bool = False  # the call's name for guidance is true_cfg_scale


_SD = Family((_TEXT, f"negative_{_TEXT}"))
# The embeddings that encode_prompt can be given -> the family.
FAMILIES = {
    frozenset({_TEXT, f"negative_{_TEXT}"}): _SD,  # SD, LCM; Z-Image, in lists
    frozenset({_TEXT, f"negative_{_TEXT}", _POOLED, f"negative_{_POOLED}"}): Family(
        (_TEXT, f"negative_{_TEXT}", _POOLED, f"negative_{_POOLED}")  # SDXL, SD3
    ),
    frozenset({_TEXT, f"negative_{_TEXT}", _MASK, f"negative_{_MASK}"}): Family(
        (_TEXT, _MASK, f"negative_{_TEXT}", f"negative_{_MASK}")  # PixArt, SANA
    ),
    # Guidance is an input of these models: Flux, SANA-Sprint.
    frozenset({_TEXT, _POOLED}): Family((_TEXT, _POOLED), negative="none"),
    frozenset({_TEXT, _MASK}): Family((_TEXT, _MASK), negative="none"),
    frozenset({_TEXT}): Family((_TEXT,), negative="read"),  # FLUX.2
    # Qwen-Image; a space is what its model card gives as the unconditional words.
    frozenset({_TEXT, _QWEN_MASK}): Family(
        (_TEXT, _QWEN_MASK), negative="read", blank=" ", true_cfg=True
    ),
}


class Texts:
    """Gives the text arguments of batches of captions."""

    def __init__(self, pipe: Any, config: RenderEngineConfig):
        self._pipe, self._words = pipe, config.negative_prompt or None
        self._call = inspect.signature(pipe.__call__).parameters
        encode = getattr(pipe, "encode_prompt", None)
        self._encode = inspect.signature(encode).parameters if encode else {}
        self._embedded: dict[str, dict[str, Tensor]] = {}  # by caption, of the last batch
        self._negative: dict[str, Tensor] = {}  # [1, ...]
        self._readers = _readers(pipe, self._call)
        given = frozenset(n for n in self._encode if "embeds" in n or "mask" in n)
        self._family = FAMILIES.get(given)
        self._ragged = False  # the call takes a list of [L, D], each text as long as it is
        if self._family and not self._is_as_known():
            self._family = None
        # Z-Image adds guidance x difference to the conditional half, so that 0 turns it off.
        least = 0 if self._ragged else 1
        self._guided = (
            self._family is not None
            and self._family.negative != "none"
            and f"negative_{_TEXT}" in self._call
            and config.guidance > least
        )
        self.truncated: set[str] = set()
        if not self._family:
            console.warn(
                f"{type(pipe).__name__}: its text embeddings are not known here, so each batch "
                "reads its captions again; the images are the same"
            )

    @property
    def read_ahead(self) -> bool:
        """Return whether captions are read before the call, each once."""
        return self._family is not None

    @property
    def doubled(self) -> bool:
        """Return whether the denoiser is given each row twice: unconditional, then with text."""
        family = self._family
        return (
            self._guided
            and family is not None
            and family.negative == "returned"
            and not self._ragged
        )

    @property
    def true_cfg(self) -> bool:
        """Return whether the call takes guidance as `true_cfg_scale`."""
        return self._family is not None and self._family.true_cfg

    def __call__(self, captions: Sequence[str]) -> dict[str, Any]:
        """Return a call's text arguments for a batch: embeddings [B, ...], or the words."""
        new = [c for c in dict.fromkeys(captions) if c not in self._embedded]
        self._count_truncated(new)
        if not self._family:
            words: dict[str, Any] = {"prompt": list(captions)}
            if self._words and "negative_prompt" in self._call:
                words["negative_prompt"] = [self._words] * len(captions)
            self._embedded = {c: {} for c in captions}  # known: not counted again
            return words
        if self._guided and not self._negative:
            self._negative = self._read_negative(self._family)
        if new:
            rows = _rows(self._embed(new, guided=False), len(new))
            self._embedded |= dict(zip(new, rows, strict=True))
        self._embedded = {c: self._embedded[c] for c in dict.fromkeys(captions)}
        text = self._batch([self._embedded[c] for c in captions])
        negative = self._batch([self._negative] * len(captions)) if self._negative else {}
        return text | negative

    def _batch(self, rows: list[dict[str, Tensor]]) -> dict[str, Any]:
        """Return rows [1, ...] as the arguments of one call: [B, ...], or lists of [L, D]."""
        if self._ragged:
            return {n: [row[n][0] for row in rows] for n in rows[0]}
        return {n: torch.cat(_padded([row[n] for row in rows])) for n in rows[0]}

    def _is_as_known(self) -> bool:
        """Return whether one small try gives embeddings of the kinds that the family has."""
        with torch.inference_mode():
            result = self._encode_prompt(["a"], guided=True)
        text = result.get(_TEXT)
        self._ragged = isinstance(text, list)
        if isinstance(text, list):
            return all(isinstance(t, Tensor) and t.ndim == 2 for t in text)
        axes = [_AXES[n.removeprefix("negative_")] for n in result]
        return bool(result) and [t.ndim for t in result.values()] == axes

    def _read_negative(self, family: Family) -> dict[str, Tensor]:
        """Return the unconditional text [1, ...] by argument name."""
        if family.negative == "returned":
            (row,) = _rows(self._embed([""], guided=True), 1)
            return {n: t for n, t in row.items() if n.startswith("negative_")}
        (row,) = _rows(self._embed([self._words or family.blank], guided=False), 1)
        return {f"negative_{n}": t for n, t in row.items() if f"negative_{n}" in self._call}

    def _embed(self, prompts: list[str], *, guided: bool) -> dict[str, Any]:
        """Return the pipeline's own text embeddings [len(prompts), ...] by argument name."""
        encoded = self._encode_prompt(prompts, guided=guided)
        if not guided:
            encoded = {n: t for n, t in encoded.items() if not n.startswith("negative_")}
        if _QWEN_MASK in self._call and _QWEN_MASK not in encoded:  # None: all of it is text
            text = encoded[_TEXT]
            encoded[_QWEN_MASK] = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
        return encoded

    def _encode_prompt(self, prompts: list[str], *, guided: bool) -> dict[str, Any]:
        assert self._family
        # Without words: what the call itself would take, None or "", as the family has it.
        none = self._call["negative_prompt"].default if "negative_prompt" in self._call else None
        own: dict[str, Any] = {
            "device": self._pipe._execution_device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": guided,
            "negative_prompt": [self._words] * len(prompts) if self._words else none,
            "prompt_2": None,  # the same words again
            "prompt_3": None,
        }
        # What the call would have handed on, such as the greatest length.
        handed = {
            n: p.default
            for n, p in self._call.items()
            if "prompt" not in n and p.default is not inspect.Parameter.empty
        }
        arguments = {k: v for k, v in (handed | own).items() if k in self._encode}
        # A list of our own: Z-Image writes its chat format into the one it gets.
        results = self._pipe.encode_prompt(list(prompts), **arguments)
        return {
            n: t
            for n, t in zip(self._family.results, results, strict=False)
            if isinstance(t, Tensor | list) and len(t) and n in self._call
        }

    def _count_truncated(self, captions: Sequence[str]) -> None:
        """Note captions that even the longest-reading of the text encoders does not end."""
        if not self._readers:
            return
        limit = max(limit for _, limit in self._readers)
        for caption in captions:
            # A token is a character at least, so most captions need no counting.
            if len(caption) + 2 <= limit or caption in self.truncated:
                continue
            if all(len(tokenizer(caption).input_ids) > most for tokenizer, most in self._readers):
                if not self.truncated:
                    console.warn(
                        f"a caption is longer than the text encoder's {limit} tokens; what goes "
                        f"beyond is not read: {caption[:60]}..."
                    )
                self.truncated.add(caption)


def _rows(encoded: dict[str, Any], count: int) -> list[dict[str, Tensor]]:
    """Return each prompt's embeddings [1, ...] by argument name."""
    return [
        {n: t[i][None] if isinstance(t, list) else t[i : i + 1] for n, t in encoded.items()}
        for i in range(count)
    ]


def _padded(rows: list[Tensor]) -> list[Tensor]:
    """Return texts [1, L, ...] as long as the longest, with zeros at the end; a mask says where."""
    longest = max(row.shape[1] for row in rows)
    return [
        row
        if row.shape[1] == longest
        else torch.cat([row, row.new_zeros(1, longest - row.shape[1], *row.shape[2:])], 1)
        for row in rows
    ]


def _readers(pipe: Any, call: Any) -> list[tuple[Any, int]]:
    """Return the tokenizers whose encoders are there, and how many tokens each encoder reads."""
    pairs = []
    for suffix in ("", "_2", "_3"):
        tokenizer = getattr(pipe, f"tokenizer{suffix}", None)
        if tokenizer is None or getattr(pipe, f"text_encoder{suffix}", None) is None:
            continue
        limit = tokenizer.model_max_length
        if "max_sequence_length" in call and "CLIP" not in type(tokenizer).__name__:
            limit = min(limit, call["max_sequence_length"].default)
        pairs.append((tokenizer, limit))
    return pairs
