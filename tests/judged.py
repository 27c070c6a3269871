"""What a judge that trains left in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Return the selected weights."""
    return load_file(out / "model.safetensors")


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two sets of weights are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def lines(out: Path) -> list[dict[str, Any]]:
    """Return what was logged."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
