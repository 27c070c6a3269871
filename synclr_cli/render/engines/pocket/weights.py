"""The files that ship: the flow in half precision, and what few steps change of it in eight bits.

pocket.safetensors: "unet.*", "whitening.*"; metadata "pocket": the settings of both (JSON)
few-steps.safetensors: "NAME" int8 and "NAME.scale" for each of the UNet's tensors, where the
distilled weight is the flow's + scale x int8, a scale for each output channel; metadata
"few_steps": the digest of the flow's file (JSON)

The second file lies beside the first. Eight bits are enough for a small difference: half the size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from synclr_cli.data import storage
from synclr_cli.errors import EngineError
from synclr_cli.render.engines.pocket.pipeline import PocketPipeline
from synclr_cli.render.engines.pocket.text import Whitening

SHIPPED = Path(__file__).with_name("pocket.safetensors")
FEW_STEPS = "few-steps.safetensors"  # beside a flow's file


def save(path: Path, unet: UNet2DConditionModel, whitening: Mapping[str, Tensor]) -> None:
    """Write a model's file, float16."""
    tensors = {f"unet.{k}": v for k, v in unet.state_dict().items()}
    tensors |= {f"whitening.{k}": v for k, v in whitening.items()}
    hidden, width = whitening["projection"].shape
    settings = {
        "unet": {k: v for k, v in unet.config.items() if not k.startswith("_")},
        "whitening": {"hidden": hidden, "width": width},
    }
    # One entry, since safetensors writes several in any order and the bytes would differ.
    metadata = {"pocket": json.dumps(settings)}
    save_file({k: v.to(torch.float16).contiguous() for k, v in tensors.items()}, path, metadata)


def save_few_steps(path: Path, distilled: UNet2DConditionModel, flow: Path) -> None:
    """Write what a distilled UNet has more than the flow it was distilled from, in int8.

    W_distilled = W_flow + scale q, q in -127..127, scale = max |W_distilled - W_flow| / 127.
    """
    base = load(flow).unet.state_dict()
    tensors: dict[str, Tensor] = {}
    for name, weight in distilled.state_dict().items():
        change = (weight - base[name]).reshape(len(weight), -1)  # [O, ...]
        scale = (change.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)  # [O, 1]
        tensors[name] = (change / scale).round().to(torch.int8).reshape(weight.shape)
        tensors[f"{name}.scale"] = scale.flatten()
    metadata = {"few_steps": json.dumps({"flow": storage.digest(flow)})}
    save_file(tensors, path, metadata)


def load(path: Path = SHIPPED) -> PocketPipeline:
    """Return the pipeline of a file, float32, without a language model.

    With few-steps.safetensors beside it the pipeline has the distilled UNet too.

    Raises:
        EngineError: no such file, none of these, or few steps of another flow beside it.
    """
    if not path.is_file():
        raise EngineError(
            f"engine pocket: has no weights at {path}",
            do="reinstall synclr, train them with tools/pocket, or use --engine procedural:",
        )
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {})["pocket"])
            tensors = {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118 - no dict
        unet = UNet2DConditionModel(**settings["unet"])
        unet.load_state_dict(_under("unet.", tensors))
        whitening = Whitening(**settings["whitening"])
        whitening.load_state_dict(_under("whitening.", tensors))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise EngineError(
            f"engine pocket: cannot read {path} ({str(e).strip().splitlines()[0]})",
            do="give a file that tools/pocket/train.py wrote",
        ) from e
    few_steps = _load_few_steps(path.with_name(FEW_STEPS), path, unet)
    scheduler = FlowMatchEulerDiscreteScheduler()
    return PocketPipeline(unet.eval(), scheduler, whitening.eval(), few_steps=few_steps)


def _load_few_steps(
    path: Path, flow: Path, unet: UNet2DConditionModel
) -> UNet2DConditionModel | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            made_for = json.loads((file.metadata() or {})["few_steps"])["flow"]
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no dict
        state = {}
        for name, weight in unet.state_dict().items():
            scale = tensors[f"{name}.scale"].reshape(-1, *[1] * (weight.dim() - 1))
            state[name] = weight + scale * tensors[name]
        distilled = UNet2DConditionModel(**unet.config)
        distilled.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise EngineError(
            f"engine pocket: cannot read {path} ({str(e).strip().splitlines()[0]})",
            do="remove it, or write it again with tools/pocket/distil.py",
        ) from e
    if made_for != storage.digest(flow):
        raise EngineError(
            f"engine pocket: {path} was distilled from other weights than {flow.name}",
            do="remove it, or distil again with tools/pocket/distil.py",
        )
    return distilled.eval()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
