"""Hand a backbone to another library, and look whether it computes the same there.

    backbone --write--> folder --reload in that library--> features --compare--> the folder's name

    timm          model.safetensors, config.json                 timm.create_model("local-dir:...")
    transformers  model.safetensors, config.json, preprocessor_config.json   AutoModel, ViTModel
    onnx          model.onnx (+ .data), preprocessing.json       onnxruntime: images -> cls, patches

An export that does not give the features it should is not kept.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor

from synclr_cli import console, rng
from synclr_cli.data import artifacts, exports
from synclr_cli.errors import EngineError, UsageError
from synclr_cli.export import onnx, timm, transformers
from synclr_cli.learning import backbone as backbones
from synclr_cli.learning.backbone import Backbone

FORMATS = {"timm": timm, "transformers": transformers, "onnx": onnx}
TOLERANCE = 1e-4  # of the largest feature, in float32


def run(backbone: str, to: str, out: Path, *, overwrite: bool = False) -> Path:
    """Write `out` for another library and return it; what is there from the same weights stays.

    Raises:
        UsageError: no such format, a ViT that the library does not have, or `out` holds another.
        DataError: the backbone cannot be read.
        EngineError: the library is missing, or computes other features.
    """
    if to not in FORMATS:
        raise UsageError("--to", got=to, expected=" | ".join(FORMATS))
    for package in FORMATS[to].PACKAGES:
        _require(package, to)
    opened = backbones.open_backbone(backbone)
    record = {"to": to, "backbone": opened.digest}
    opened.model.eval()
    images = _images(opened)
    with exports.new_folder(out, record, overwrite=overwrite) as partial:
        if partial is None:
            return out
        FORMATS[to].write(opened, partial)
        apart = _apart(_features(opened, images), FORMATS[to].features(partial, images))
        if not apart <= TOLERANCE:
            raise EngineError(
                f"{backbone} in {to}: its features are {apart:.2g} of the largest apart",
                expected=f"at most {TOLERANCE:g}",
                got=f"{apart:.2g}",
                do=f"report it with the versions of torch and {to}",
            )
        source = artifacts.parent(Path(opened.name), opened.header, opened.digest)
        exports.record_export(partial, record, source, features_apart=apart)
    console.note(f"{to} gives the same features to {apart:.1e} of the largest")
    return out


def _images(opened: Backbone) -> Tensor:
    """Return noise that looks like normalised images, [3, 3, S, S]."""
    generator = rng.torch_generator("export.check")
    size = opened.image_size
    return torch.randn(3, 3, size, size, generator=generator)


@torch.no_grad()
def _features(opened: Backbone, images: Tensor) -> Tensor:
    tokens: Tensor = opened.model.forward_features(images)  # [3, 1 + N, D]
    return tokens


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference as a share of the largest feature."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / ours.abs().max())


def _require(package: str, to: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as e:
        raise EngineError(
            f"--to {to} needs {package}, which cannot be imported ({e})",
            do="get it: pip install " + ("'synclr[onnx]'" if to == "onnx" else package),
        ) from e
