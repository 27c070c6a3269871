"""The first steps by a base model, the rest by a few-step model that was distilled from it.

    step < base_steps: base model, guided | else: few-step model, unguided -> the same scheduler

The first steps settle the layout, which distilled models vary little; the base model gives it back
(Gandikota and Bau 2025, "Distilling Diversity and Control in Diffusion Models"). Both run inside
the few-step pipeline's own call: with guidance its denoiser is given 2B rows, negative ones first.
In a few-step step the positive half alone is computed, and stands for both, so that
negative + guidance (positive - negative) is that half.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

from synclr_cli.config import RenderEngineConfig
from synclr_cli.errors import EngineError, UsageError

_SAME = ("in_channels", "out_channels", "cross_attention_dim", "sample_size", "joint_attention_dim")


class FirstSteps:
    """Hands the first steps of a pipeline's denoiser to another one.

    Args:
        pipe: the few-step pipeline, on its device.
        base: the base model's denoiser, on the same.
        steps: of each call, that the base model does.
    """

    def __init__(self, pipe: Any, base: torch.nn.Module, steps: int):
        self._steps, self._base = steps, base
        self._here = threading.local()  # each lane is a thread in a step of its own
        denoiser = _denoiser(pipe)
        self._few = denoiser.forward
        denoiser.forward = self._forward

    def arguments(self) -> dict[str, Any]:
        """Begin a call in this thread; return what the pipeline is given to tell its steps."""
        self._here.step = 0
        return {"callback_on_step_end": self._count}

    def _count(self, _pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._here.step = step + 1
        return tensors

    def _forward(self, sample: Tensor, *others: Any, **named: Any) -> Any:
        if self._here.step < self._steps:
            return self._base(sample, *others, **named)
        rows = len(sample)

        def positive(x: Any) -> Any:
            return x[rows // 2 :] if isinstance(x, Tensor) and x.ndim and len(x) == rows else x

        sample, others, named = trees.tree_map(positive, (sample, others, named))
        result = self._few(sample, *others, **named)
        return trees.tree_map(lambda x: torch.cat([x, x]), result)


def load(
    engine: str, pipe: Any, base: Path, dtype: torch.dtype, config: RenderEngineConfig
) -> torch.nn.Module:
    """Load the base model's denoiser for a few-step pipeline.

    Raises:
        UsageError: the two do not fit each other, or the settings do not fit.
        EngineError: no such denoiser there.
    """
    if config.compile or config.offload:
        raise UsageError("render.engine.options.base", got="compile or offload", expected="neither")
    denoiser = _denoiser(pipe)
    name = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
    try:
        other = type(denoiser).from_pretrained(
            base, subfolder=name, torch_dtype=dtype, use_safetensors=True,
            **({"variant": config.variant} if config.variant else {}),
        )  # fmt: skip
        scheduler = type(pipe.scheduler).load_config(base, subfolder="scheduler")
    except (OSError, ValueError, RuntimeError) as e:
        raise EngineError(f"{engine}: {base} has no {name} that fits ({e})".split("\n")[0]) from e
    ours, theirs = denoiser.config, other.config
    for key in _SAME:
        if ours.get(key) != theirs.get(key):
            raise UsageError(
                f"{key} of the base model", got=theirs.get(key), expected=ours.get(key)
            )
    if theirs.get("time_cond_proj_dim") != ours.get("time_cond_proj_dim"):
        raise UsageError(
            f"{engine} takes guidance as an input",
            do="a base model's first steps need a few-step model without: Turbo, Lightning, Hyper",
        )
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    if scheduler.get("prediction_type", "epsilon") != kind:
        raise UsageError(
            "prediction_type of the base model", got=scheduler.get("prediction_type"), expected=kind
        )
    model: torch.nn.Module = other.eval()
    return model


def _denoiser(pipe: Any) -> Any:
    unet = getattr(pipe, "unet", None)
    return unet if unet is not None else pipe.transformer
