"""Captions -> the text arguments of a pipeline's call, each caption read once.

    captions of a batch -> encode_prompt of the new ones -> embeddings by argument name [B, ...]

Only families whose embeddings this module knows are read ahead; any other pipeline is given the
words, and reads them itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from synclr_cli import console
from synclr_cli.config import RenderEngineConfig

_TEXT, _POOLED, _MASK = "prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"
# The embeddings encode_prompt can be given -> what it returns, in order, by argument name.
FAMILIES = {
    frozenset({_TEXT, f"negative_{_TEXT}"}): (_TEXT, f"negative_{_TEXT}"),  # SD, LCM
    frozenset({_TEXT, f"negative_{_TEXT}", _POOLED, f"negative_{_POOLED}"}): (
        _TEXT, f"negative_{_TEXT}", _POOLED, f"negative_{_POOLED}",  # SDXL, SD3
    ),
    frozenset({_TEXT, f"negative_{_TEXT}", _MASK, f"negative_{_MASK}"}): (
        _TEXT, _MASK, f"negative_{_TEXT}", f"negative_{_MASK}",  # PixArt, Sana
    ),
    frozenset({_TEXT, _POOLED}): (_TEXT, _POOLED),  # Flux; its guidance is an input of the model
}  # fmt: skip
_AXES = {_TEXT: 3, _POOLED: 2, _MASK: 2}  # [B, L, D], [B, D], [B, L]


class Texts:
    """Gives the text arguments of batches of captions."""

    def __init__(self, pipe: Any, config: RenderEngineConfig):
        self._pipe, self._words = pipe, config.negative_prompt or None
        self._call = inspect.signature(pipe.__call__).parameters
        encode = getattr(pipe, "encode_prompt", None)
        self._encode = inspect.signature(encode).parameters if encode else {}
        self._embedded: dict[str, dict[str, Tensor]] = {}  # by caption, of the last batch
        self._negative: dict[str, Tensor] = {}
        self._readers = _readers(pipe, self._call)
        self.names = self._known_names()  # of encode_prompt's results; () if they are not known
        self._guided = config.guidance > 1 and any(
            n.startswith("negative") and n in self._call for n in self.names
        )
        self.truncated: set[str] = set()

    def __call__(self, captions: Sequence[str]) -> dict[str, Any]:
        """Return a call's text arguments for a batch: embeddings [B, ...], or the words."""
        new = [c for c in dict.fromkeys(captions) if c not in self._embedded]
        self._count_truncated(new)
        if not self.names:
            words: dict[str, Any] = {"prompt": list(captions)}
            if self._words and "negative_prompt" in self._call:
                words["negative_prompt"] = [self._words] * len(captions)
            self._embedded = {c: {} for c in captions}  # known: not counted again
            return words
        if self._guided and not self._negative:
            encoded = self._embed([""], guided=True)
            self._negative = {n: t for n, t in encoded.items() if n.startswith("negative")}
        if new:
            encoded = self._embed(new, guided=False)
            for i, caption in enumerate(new):
                self._embedded[caption] = {
                    n: t[i : i + 1] for n, t in encoded.items() if not n.startswith("negative")
                }
        rows = [self._embedded[c] for c in captions]
        self._embedded = {c: self._embedded[c] for c in dict.fromkeys(captions)}
        text = {n: torch.cat([row[n] for row in rows]) for n in rows[0]}  # [B, ...]
        return text | {n: t.expand(len(rows), *t.shape[1:]) for n, t in self._negative.items()}

    def _known_names(self) -> tuple[str, ...]:
        """Return the names of encode_prompt's results, if one small try confirms them."""
        given = frozenset(n for n in self._encode if "embeds" in n or "mask" in n)
        self.names = FAMILIES.get(given, ())
        if not self.names:
            return ()
        with torch.inference_mode():
            tried = self._embed(["a"], guided=True)
        axes = [_AXES[n.removeprefix("negative_")] for n in tried]
        return self.names if [t.ndim for t in tried.values()] == axes and tried else ()

    def _embed(self, prompts: list[str], *, guided: bool) -> dict[str, Tensor]:
        """Return the pipeline's own text embeddings [len(prompts), ...] by argument name."""
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
        results = self._pipe.encode_prompt(prompts, **arguments)
        return {
            n: t
            for n, t in zip(self.names, results, strict=False)
            if isinstance(t, Tensor) and n in self._call
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
                        f"beyond is not painted: {caption[:60]}..."
                    )
                self.truncated.add(caption)


def _readers(pipe: Any, call: Any) -> list[tuple[Any, int]]:
    """Return the tokenizers whose encoders are there, and how many tokens each encoder reads."""
    found = []
    for suffix in ("", "_2", "_3"):
        tokenizer = getattr(pipe, f"tokenizer{suffix}", None)
        if tokenizer is None or getattr(pipe, f"text_encoder{suffix}", None) is None:
            continue
        limit = tokenizer.model_max_length
        if "max_sequence_length" in call and "CLIP" not in type(tokenizer).__name__:
            limit = min(limit, call["max_sequence_length"].default)
        found.append((tokenizer, limit))
    return found
