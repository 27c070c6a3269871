"""What `train.py` and `distil.py` share: a loop that can be stopped, its checkpoint and its log."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_checkpoint(
    path: Path, unet: nn.Module, averaged: nn.Module, optimizer: torch.optim.AdamW, step: int
) -> None:
    """Write where a training stands, whole or not at all."""
    parts = {"unet": unet.state_dict(), "averaged": averaged.state_dict()}
    moments = optimizer.state_dict()["state"]
    parts |= {f"moments/{i}": of_parameter for i, of_parameter in moments.items()}
    partial = path.with_suffix(".partial")
    flat = {f"{part}/{k}": v for part, state in parts.items() for k, v in state.items()}
    save_file(flat, partial, {"step": str(step)})
    partial.replace(path)


def load_checkpoint(
    path: Path, unet: nn.Module, averaged: nn.Module, optimizer: torch.optim.AdamW
) -> int:
    """Take up what `save_checkpoint` wrote, if anything; return the step."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        parts: dict[str, dict[str, Tensor]] = {}
        for key in file.keys():  # noqa: SIM118 - no dict
            part, _, name = key.rpartition("/")
            parts.setdefault(part, {})[name] = file.get_tensor(key)
        step = int(file.metadata()["step"])
    unet.load_state_dict(parts["unet"])
    averaged.load_state_dict(parts["averaged"])
    moments = {int(k.rpartition("/")[2]): v for k, v in parts.items() if k.startswith("moments")}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return step


@torch.no_grad()
def average(averaged: nn.Module, current: nn.Module, keep: float) -> None:
    """Move `averaged` towards `current` by a share 1 - keep."""
    torch._foreach_lerp_(list(averaged.parameters()), list(current.parameters()), 1 - keep)


class Stop:
    """Whether SIGTERM has come: a training then ends after the step in work."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._request)

    def _request(self, *_: object) -> None:
        self.requested = True


class Log:
    """Means over so many steps, a JSON line each."""

    def __init__(self, path: Path, batch: int, every: int):
        self._path, self._batch, self._every = path, batch, every
        self._values: dict[str, list[float]] = {}
        self._steps, self._since = 0, time.monotonic()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Note one step's values; steps may differ in what they have."""
        self._steps += 1
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)
        if step % self._every:
            return
        speed = self._steps * self._batch / (time.monotonic() - self._since)
        means = {name: sum(v) / len(v) for name, v in sorted(self._values.items())}
        with open(self._path, "a", encoding="utf-8") as file:
            line = {"step": step, **means, "images_per_s": round(speed, 1)}
            file.write(json.dumps(line) + "\n")
        self._values, self._steps, self._since = {}, 0, time.monotonic()
