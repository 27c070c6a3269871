"""Frozen features of images: what evaluations classify, and what `synclr embed` writes.

    images --resize, crop, normalise--> [B, 3, S, S] --frozen ViT--> cls features [n, D]

Shapes: B images of a batch, n of all, S pixels, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from synclr_cli import console
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import backbone as backbones, loader
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.runtime import Runtime
from synclr_cli.learning.transforms import EvalTransform

PART = 4096  # images: what a rank takes at a time, and what a kill loses at most


class Images(Protocol):
    """Numbered images."""

    def image(self, i: int) -> Image.Image:
        """Return image i as 8-bit RGB."""
        ...

    def where(self, i: int) -> str:
        """Return what to call image i in an error."""
        ...


def open_any(spec: str, *, image_size: int, seed: int) -> Backbone:
    """Open a backbone, or `pixels:SIDE`: the image itself at SIDE x SIDE, the floor of floors."""
    scheme, _, side = spec.partition(":")
    if scheme != "pixels":
        return backbones.open_backbone(spec, image_size=image_size, seed=seed)
    if not side.isdigit() or not int(side):
        raise UsageError(f"backbone {spec}", expected="pixels:SIDE, as in pixels:32")
    return Backbone(
        model=_Pixels(),
        spec=spec,
        name=f"pixels-{side}",
        digest=spec,
        image_size=int(side),
        mean=backbones.IMAGENET_MEAN,
        std=backbones.IMAGENET_STD,
        interpolation="bicubic",
    )


class _Pixels(nn.Module):
    """A ViT's interface to the identity."""

    def forward_features(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, None]  # [B, 1, 3 S S]


def transform(backbone: Backbone) -> EvalTransform:
    """Return the protocol's view of an image: shorter side to S, centre crop S, no augmentation.

    Normalisation and interpolation are those the backbone was trained with.
    """
    return EvalTransform(
        size=backbone.image_size,
        resize=backbone.image_size,
        mean=backbone.mean,
        std=backbone.std,
        interpolation=backbone.interpolation,
    )


@torch.inference_mode()
def of_batch(model: nn.Module, images: Tensor, rt: Runtime) -> Tensor:
    """Return the features of images [B, 3, S, S] of the host, [B, D] float32 on the device."""
    with rt.autocast():
        return backbones.cls_features(model, rt.upload(images)).float()


def extract(
    model: nn.Module,
    backbone: Backbone,
    images: Images,
    rows: Sequence[int],
    rt: Runtime,
    meter: console.Meter,
    *,
    batch_size: int,
    workers: int,
) -> Tensor:
    """Return the features of some of the images, [n, D] float32 on the host.

    Args:
        model: the backbone's, on the device, in evaluation mode.
        workers: loader processes; -1: by the cores.

    Raises:
        DataError: an image does not decode, or its features are not finite.
    """
    rows_of_batches = loader.in_batches(rows, batch_size)
    view = functools.partial(transform(backbone).of, images)
    batches = loader.load(view, rows_of_batches, workers=workers)
    features = []
    for keys, batch in zip(rows_of_batches, batches, strict=True):
        x = of_batch(model, batch, rt).cpu()  # [B, D]
        finite = torch.isfinite(x).all(1)
        if not finite.all():
            first = keys[int((~finite).nonzero()[0])]
            raise DataError(
                f"the features of {images.where(first)} are not finite",
                do=f"look at the weights of {backbone.spec}",
            )
        features.append(x)
        meter.advance(len(keys))
    return torch.cat(features)  # [n, D]


def parts(n: int) -> list[range]:
    """Return the images of each part."""
    return [range(first, min(first + PART, n)) for first in range(0, n, PART)]
