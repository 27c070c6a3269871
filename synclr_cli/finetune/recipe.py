"""What Table 14 is made of: the classifier, its learning rate, the views, and how it is graded.

Shapes: B images of a batch, S pixels, K classes, n images of a split.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.models import VisionTransformer
from torch import Tensor, nn

from synclr_cli.config import FinetuneConfig
from synclr_cli.data.labelled import Split
from synclr_cli.errors import UsageError
from synclr_cli.learning import loader, runtime, schedules
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.runtime import Runtime
from synclr_cli.learning.transforms import EvalTransform

_HEAD_STD = 2e-5  # of the new head's weights, in the released code


def classifier(backbone: VisionTransformer, classes: int, seed: int) -> VisionTransformer:
    """Put a new linear head on the cls token; the weights are drawn from the seed alone."""
    backbone.reset_classifier(classes, global_pool="token")
    with runtime.seeded("finetune.head", seed):
        nn.init.trunc_normal_(backbone.head.weight, std=_HEAD_STD)
    nn.init.zeros_(backbone.head.bias)
    return backbone


def learning_rate(config: FinetuneConfig, step: int, steps_per_epoch: int) -> float:
    """Return the last layer's learning rate at an update: base_lr x batch / 256 at its peak.

    A group scales all of it, `min_lr` too, as the released code does.
    """
    return schedules.warmup_cosine(
        step,
        config.epochs * steps_per_epoch,
        round(config.warmup_epochs * steps_per_epoch),
        config.base_lr * config.batch_size / 256,
        config.min_lr,
    )


def train_view(config: FinetuneConfig, backbone: Backbone) -> Callable[..., Tensor]:
    """Return timm's training view: crop, flip, auto-augment, erasing; [3, S, S].

    Raises:
        UsageError: timm does not know the auto-augment policy.
    """
    try:
        view = create_transform(
            backbone.image_size,
            is_training=True,
            scale=config.crop_scale,
            color_jitter=None,
            auto_augment=config.augment or None,
            interpolation="bicubic",
            re_prob=config.random_erasing,
            re_mode="pixel",  # erased with noise, as in the released command
            mean=tuple(backbone.mean),
            std=tuple(backbone.std),
        )
    except AssertionError as e:  # timm's way to refuse a policy
        raise UsageError(
            f"finetune.augment ({e})", got=repr(config.augment),
            expected='a policy of timm such as "rand-m9-mstd0.5-inc1", or ""',
        ) from e  # fmt: skip
    for part in view.transforms:
        drawn_from = [*getattr(part, "ops", ()), *itertools.chain(*getattr(part, "policy", ()))]
        for operation in drawn_from:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize
    return view


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the highest bits of each channel; with none the image is black.

    timm asks Pillow for 0 bits at its highest magnitude, which newer Pillows refuse.
    """
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def train_item(
    split: Split, view: Callable[..., Tensor], seed: int, key: tuple[int, int]
) -> tuple[Tensor, int]:
    """Return one view and its label; what is drawn depends on (seed, epoch, image) alone."""
    epoch, i = key
    with runtime.seeded("finetune.augmentation", seed, epoch, i):
        return view(split.image(i)), int(split.labels[i])


def test_view(config: FinetuneConfig, backbone: Backbone) -> EvalTransform:
    """Return the view that is graded: shorter side to size / test_crop, centre crop."""
    return EvalTransform(
        size=backbone.image_size,
        resize=int(backbone.image_size / config.test_crop),
        mean=backbone.mean,
        std=backbone.std,
        interpolation=backbone.interpolation,
    )


def predict(
    models: Mapping[str, nn.Module],
    split: Split,
    view: EvalTransform,
    rt: Runtime,
    *,
    batch_size: int,
    workers: int,
) -> dict[str, np.ndarray]:
    """Return each model's most likely class of every image of a split, [n]; ranks share the work.

    The images are decoded once for all models.
    """
    rows_here = range(rt.rank, len(split), rt.world)
    predictions = {name: torch.zeros(len(split), dtype=torch.long) for name in models}
    make = functools.partial(_test_item, split, view)
    keys = loader.in_batches(rows_here, batch_size)
    with torch.inference_mode():
        for images, rows in loader.load(make, keys, workers=workers):
            for name, model in models.items():
                model.eval()
                with rt.autocast():
                    logits = model(images.to(rt.device))  # [B, K]
                predictions[name][rows] = logits.argmax(-1).cpu()
    return {
        name: rt.sum(classes.to(rt.device)).cpu().numpy() for name, classes in predictions.items()
    }


def _test_item(split: Split, view: EvalTransform, i: int) -> tuple[Tensor, int]:
    return view(split.image(i)), i
