"""The mean of gradients over ranks, taken while the backward pass still makes others.

    parameters, last ones first --buckets--> sums over ranks, each under way once it is whole

Every rank sends its buckets in one order, whatever the order its gradients come in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from synclr_cli.learning.runtime import Runtime

BUCKET = 25 << 20  # bytes of one message, as torch's own DistributedDataParallel has it


class GradientAverage:
    """Replaces the gradients of parameters by their mean over ranks; alone, does nothing."""

    def __init__(self, parameters: Iterable[nn.Parameter], runtime: Runtime):
        """Divide the parameters into buckets, those used last first."""
        self._runtime, self._armed = runtime, False
        self._buckets: list[list[nn.Parameter]] = []
        self._bucket_of: dict[nn.Parameter, int] = {}
        self._reset()
        if runtime.world == 1:
            return
        size = BUCKET
        for p in reversed([p for p in parameters if p.requires_grad]):
            if size >= BUCKET:
                self._buckets.append([])
                size = 0
            self._buckets[-1].append(p)
            self._bucket_of[p] = len(self._buckets) - 1
            size += p.numel() * p.element_size()
            p.register_post_accumulate_grad_hook(self._receive)
        self._reset()

    def _reset(self) -> None:
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent: list[tuple[list[Tensor], Tensor, Callable[[], None]]] = []
        self._armed = False

    def start(self) -> None:
        """Send from here on what is whole: to be called before the last backward pass of a step."""
        self._armed = self._runtime.world > 1

    def finish(self) -> None:
        """Send what is left, and wait until the gradients are the means."""
        while len(self._sent) < len(self._buckets):
            self._send()
        for gradients, flat, wait in self._sent:
            wait()
            parts = (flat / self._runtime.world).split([g.numel() for g in gradients])
            torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients)])  # noqa: B905
        self._reset()

    def _receive(self, p: nn.Parameter) -> None:
        if not self._armed:
            return
        self._missing[self._bucket_of[p]] -= 1
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send()

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients]) if gradients else torch.empty(0)
        wait = self._runtime.sum_later(flat) if gradients else lambda: None
        self._sent.append((gradients, flat, wait))
