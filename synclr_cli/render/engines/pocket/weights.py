"""The file that ships: UNet and whitening as half-precision safetensors, with what they are.

pocket.safetensors: "unet.*", "whitening.*"; metadata "pocket": the settings of both (JSON)
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

from synclr_cli.errors import EngineError
from synclr_cli.render.engines.pocket.pipeline import PocketPipeline
from synclr_cli.render.engines.pocket.text import Whitening

SHIPPED = Path(__file__).with_name("pocket.safetensors")


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


def load(path: Path = SHIPPED) -> PocketPipeline:
    """Return the pipeline of a file, float32, without a language model.

    Raises:
        EngineError: no such file, or none of these.
    """
    if not path.is_file():
        raise EngineError(
            f"engine pocket: has no weights at {path}",
            do="install synclr anew, train them with tools/pocket, or use --engine procedural:",
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
    scheduler = FlowMatchEulerDiscreteScheduler()
    return PocketPipeline(unet.eval(), scheduler, whitening.eval())


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
