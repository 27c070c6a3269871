"""What a line of metrics.jsonl says about the run: whether it has collapsed.

Needs no torch, so that `synclr inspect` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METRICS_FILE = "metrics.jsonl"
COLLAPSED_RANK = 1.5  # directions in use; a batch of unrelated embeddings has tens
COLLAPSED_PROTOTYPES = 1.5  # prototypes in use


def collapse(line: Mapping[str, Any]) -> str:
    """Return what is wrong with a run whose embeddings have collapsed, and "" otherwise."""
    cure = "Lower train.peak_lr, lengthen train.warmup_steps, or raise train.ema"
    rank, prototypes = line.get("effective_rank"), line.get("prototype_perplexity")
    if rank is not None and rank < COLLAPSED_RANK:
        return (
            f"step {line['step']}: the embeddings of different pictures lie on"
            f" {rank:.1f} directions; the run has collapsed. {cure}"
        )
    if prototypes and prototypes < COLLAPSED_PROTOTYPES:  # 0: no patch was masked
        return (
            f"step {line['step']}: all masked patches have {prototypes:.1f} prototypes as their"
            f" first; the patches' side of the run has collapsed. {cure}"
        )
    return ""
