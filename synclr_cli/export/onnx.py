"""An ONNX file: images [B, 3, S, S] -> cls [B, D] and patches [B, N, D], for any batch size."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synclr_cli.data import storage
from synclr_cli.learning import backbone as backbones
from synclr_cli.learning.backbone import Backbone

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18


class _Outputs(nn.Module):
    """The two things that users of a backbone ask for."""

    def __init__(self, vit: nn.Module):
        super().__init__()
        self.vit: Any = vit

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.vit.forward_features(images)  # [B, 1 + N, D]
        return tokens[:, 0], tokens[:, 1:]  # [B, D], [B, N, D]


def write(opened: Backbone, folder: Path) -> None:
    """Write `model.onnx` and how to show it an image."""
    size = opened.image_size
    fixed = backbones.of_fixed_size(opened).eval()
    example = torch.zeros(2, 3, size, size)
    loud = logging.getLogger("torch.onnx")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Outputs(fixed),
                (example,),
                str(folder / "model.onnx"),
                input_names=["images"],
                output_names=["cls", "patches"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        loud.setLevel(level)
    storage.write_json(
        folder / "preprocessing.json",
        {
            "resize_shorter_side": size,
            "centre_crop": size,
            "interpolation": opened.interpolation,
            "scale": 1 / 255,
            "mean": list(opened.mean),
            "std": list(opened.std),
        },
    )


def features(folder: Path, images: Tensor) -> Tensor:
    """Return what onnxruntime makes of images, [B, 1 + N, D]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    cls, patches = session.run(["cls", "patches"], {"images": images.numpy()})
    return torch.cat([torch.from_numpy(cls)[:, None], torch.from_numpy(patches)], dim=1)
