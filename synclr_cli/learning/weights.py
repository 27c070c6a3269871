"""What a file of weights says of itself, whosever it is, checked before anything is built of it."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from synclr_cli.data.header import Header
from synclr_cli.errors import DataError

_FACTS: dict[str, type | tuple[type, ...]] = {
    "arch": str, "arch_arguments": dict, "image_size": int, "mean": list, "std": list,
    "interpolation": str,
}  # fmt: skip
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
LARGEST_IMAGE, DEEPEST = 4096, 256  # pixels, blocks; of any ViT there is


def facts(header: Header, path: Path) -> dict[str, Any]:
    """Return what a header says of a backbone.

    Raises:
        DataError: a fact is missing, of another type or out of range.
    """
    known = dict(header.facts or {})
    for name, kind in _FACTS.items():
        if not isinstance(known.get(name), kind) or isinstance(known[name], bool):
            raise DataError(f"{path}: {name} in its header", got=repr(known.get(name))[:80])
    sizes = {"image_size": known["image_size"], **known["arch_arguments"]}
    for name, size in sizes.items():
        most = DEEPEST if name == "depth" else LARGEST_IMAGE
        if type(size) is not int or not 0 < size <= most:
            raise DataError(
                f"{path}: {name} in its header", got=repr(size)[:80], expected=f"1 to {most}"
            )
    for name in ("mean", "std"):
        values = known[name]
        numbers = all(isinstance(v, float | int) and abs(v) < 1e6 for v in values)
        if len(values) != 3 or not numbers or (name == "std" and min(values) <= 0):
            raise DataError(f"{path}: {name} in its header", got=repr(values)[:80])
    if known["interpolation"] not in _INTERPOLATIONS:
        raise DataError(
            f"{path}: interpolation in its header",
            got=repr(known["interpolation"])[:80],
            expected=" | ".join(_INTERPOLATIONS),
        )
    return known


def unpickled(path: Path) -> Mapping[str, Tensor]:
    """Read the state dict of a .pth, wherever in it, without running code from it."""
    try:
        # The released training scripts save their parsed arguments beside the weights: plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (
        # What torch's own reader raises over bytes that are no pickle depends on the bytes.
        OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
        pickle.UnpicklingError,
    ) as e:  # fmt: skip
        raise DataError(
            f"{path} is not a checkpoint that can be read without running code from it"
            f" ({(str(e) or type(e).__name__).splitlines()[0]})"
        ) from e
    state = loaded
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise DataError(f"{path}", got=type(state).__name__, expected="a state dict")
    return {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}


def arch_of(tensors: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, int]]:
    """Return the timm ViT that a state dict is of, and how it was built."""
    patches, table = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    if patches is None or table is None:
        some = ", ".join(list(tensors)[:3]) or "no tensor"
        missing = "patch_embed.proj.weight" if patches is None else "pos_embed"
        raise DataError(
            f"{path} is not a ViT checkpoint", got=f"keys like {some}", expected=missing
        )
    if patches.ndim != 4 or table.ndim != 3 or not patches.numel() or table.shape[1] < 2:
        raise DataError(
            f"{path} is not a ViT checkpoint",
            got=f"patch_embed.proj.weight {list(patches.shape)}, pos_embed {list(table.shape)}",
            expected="[D, 3, P, P] and [1, 1 + patches, D]",
        )
    width, patch = patches.shape[0], patches.shape[-1]  # [D, 3, P, P]
    size = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}.get(width)
    if size is None:
        raise DataError(f"{path} is a ViT of width {width}, unknown to timm")
    own = {"large": 24, "huge": 32}.get(size, 12)
    depth = len({k.split(".")[1] for k in tensors if k.startswith("blocks.")})
    side = round((table.shape[1] - 1) ** 0.5)  # patches
    name = f"vit_{size}_patch{patch}_224"
    arch = name if timm.is_model(name) else f"vit_{size}_patch{14 if size == 'huge' else 16}_224"
    return arch, {
        "image_size": side * patch,
        "patch_size": 0 if arch == name else patch,
        "depth": 0 if depth == own else depth,
    }
