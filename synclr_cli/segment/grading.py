"""What a segmenter reads and how it is graded.

    split + models --grade--> per model Counts(confusion [K, K], per image [n, 3, K])

Shapes: K classes, n images of a split, S pixels of a crop, H and W of one image.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synclr_cli import rng
from synclr_cli.config import SegmentConfig
from synclr_cli.data.labelled import LabelledDataset
from synclr_cli.errors import DataError
from synclr_cli.learning import loader, metrics
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.runtime import Runtime
from synclr_cli.segment import dense

_FLOOR_IMAGES = 500  # training masks, at most, that say which class is commonest


@dataclass(frozen=True)
class Counts:
    """Pixels of a split, right and wrong."""

    confusion: np.ndarray  # [K, K], truth along the rows
    by_image: np.ndarray  # [n, 3, K]: pixels that are right, of the class, predicted as it

    def mean_iou(self) -> float:
        """Return the mean intersection over union of the classes seen, 0 to 1."""
        return metrics.mean_iou(self.confusion)

    def interval(self, seed: int) -> tuple[float, float]:
        """Return the 95 % interval of the mean IoU, images drawn with replacement."""

        def mean_iou_of(resampled: np.ndarray) -> float:
            times = np.bincount(resampled, minlength=len(self.by_image))
            right, truth, predicted = np.tensordot(times, self.by_image, 1)  # [K] each
            union = truth + predicted - right
            return float(np.mean(right[union > 0] / union[union > 0]))

        return metrics.bootstrap_interval_of(mean_iou_of, len(self.by_image), seed)


def train_item(
    config: SegmentConfig,
    images: LabelledDataset,
    mean: Sequence[float],
    std: Sequence[float],
    key: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return one crop and its class ids; what is drawn depends on (seed, epoch, image) alone."""
    epoch, i = key
    split = images.splits["train"]
    ids = dense.read_mask(split, i, config.ignore_index)
    generator = rng.generator(config.seed, epoch, i)
    return dense.training_crop(split.image(i), ids, config, mean, std, generator)


def grade(
    config: SegmentConfig,
    images: LabelledDataset,
    opened: Backbone,
    rt: Runtime,
    split: str,
    models: Mapping[str, nn.Module],
) -> dict[str, Counts]:
    """Test models on the whole images of a split; ranks share the images."""
    classes, n = len(images.classes), len(images.splits[split])
    confusion = {name: torch.zeros(classes, classes, dtype=torch.long) for name in models}
    by_image = {name: torch.zeros(n, 3, classes, dtype=torch.long) for name in models}
    make = functools.partial(_test_item, config, images, opened, split)
    keys = [[i] for i in range(rt.rank, n, rt.world)]
    with torch.inference_mode():
        for x, ids, i in loader.load(make, keys, workers=config.workers, collate=_the_only):
            for name, model in models.items():
                model.eval()
                predicted = segment_image(model, x.to(rt.device), ids.shape, config, rt)
                counts = metrics.confusion(ids, predicted.cpu().numpy(), classes)
                confusion[name] += torch.from_numpy(counts)
                by_image[name][i] = torch.from_numpy(
                    np.stack([np.diag(counts), counts.sum(1), counts.sum(0)])
                )
    return {
        name: Counts(
            rt.sum(confusion[name].to(rt.device)).cpu().numpy(),
            rt.sum(by_image[name].to(rt.device)).cpu().numpy(),
        )
        for name in models
    }


def segment_image(
    model: nn.Module, x: Tensor, size: Sequence[int], config: SegmentConfig, rt: Runtime
) -> Tensor:
    """Return the class of every pixel, [H, W] of `size`, of one image [3, h, w]."""

    def logits_of(windows: Tensor) -> Tensor:
        with rt.autocast():
            logits = model(windows)[0]
        return F.interpolate(
            logits.float(), size=windows.shape[2:], mode="bilinear", align_corners=False
        )  # [B, K, S, S]

    logits = dense.slide(logits_of, x, window=config.image_size, stride=config.stride)
    return dense.likeliest(logits, (size[0], size[1]))


def floor(config: SegmentConfig, images: LabelledDataset, tested: Counts) -> np.ndarray:
    """Return the confusion matrix of saying the training split's commonest class everywhere."""
    split, classes = images.splits["train"], len(images.classes)
    some = np.linspace(0, len(split) - 1, min(len(split), _FLOOR_IMAGES)).astype(int)
    pixels = np.zeros(classes, dtype=np.int64)
    for i in some:
        ids = dense.read_mask(split, int(i), config.ignore_index)
        pixels += np.bincount(ids[ids != dense.IGNORED], minlength=classes)
    if not pixels.any():
        raise DataError(f"the training masks of {images.name} label no pixel")
    counts = np.zeros((classes, classes), dtype=np.int64)
    counts[:, pixels.argmax()] = tested.confusion.sum(1)
    return counts


def _test_item(
    config: SegmentConfig, images: LabelledDataset, opened: Backbone, split: str, i: int
) -> tuple[Tensor, np.ndarray, int]:
    chosen = images.splits[split]
    ids = dense.read_mask(chosen, i, config.ignore_index)
    return dense.test_view(chosen.image(i), config.short_side, opened.mean, opened.std), ids, i


def _the_only(items: list[Any]) -> Any:
    return items[0]
