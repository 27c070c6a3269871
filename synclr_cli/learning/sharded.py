"""Tensors of which each rank keeps a share, as `Runtime.shard` leaves them (FSDP's DTensors).

    whole [n, ...] --as_sharded--> share of each rank [n / world, ...] --whole--> whole again

A share is some rows; the last ranks have fewer, or none, where the ranks do not divide the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from synclr_cli.learning.runtime import Runtime


def is_sharded(x: Tensor) -> bool:
    """Return whether this rank has a share of a tensor only."""
    return hasattr(x, "to_local")


def share(x: Tensor) -> Tensor:
    """Return this rank's share, in the same memory; all of it if it is not sharded."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def norm(tensors: Sequence[Tensor], rt: Runtime) -> Tensor:
    """Return the length of tensors taken together; all are sharded, or none."""
    length = torch.nn.utils.get_total_norm([share(x) for x in tensors])
    return rt.sum(length.square()).sqrt() if any(map(is_sharded, tensors)) else length


def whole(tensors: Mapping[str, Tensor], rt: Runtime) -> dict[str, Tensor]:
    """Return what is sharded whole, on the main rank's host; every rank must call it."""
    result = dict(tensors)
    for name, x in tensors.items():
        if is_sharded(x):
            x = x.full_tensor()  # type: ignore[attr-defined]
            result[name] = x.cpu() if rt.is_main else x.new_empty(0)
    return result


@torch.no_grad()
def as_sharded(
    tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], rt: Runtime
) -> dict[str, Tensor]:
    """Return whole tensors, which every rank has, sharded as those of their shape in `like`."""
    result = dict(tensors)
    for name, x in tensors.items():
        own = like.get(name)
        if own is not None and is_sharded(own) and own.shape == x.shape:
            result[name] = torch.empty_like(own, dtype=x.dtype)
            if len(share(result[name])):
                share(result[name]).copy_(x.chunk(rt.world)[rt.rank])
    return result
