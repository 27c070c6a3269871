"""A cheap grade while training: k nearest neighbours of the teacher's features on labelled images.

    train.knn_data --open--> uint8 images, kept --teacher--> cls features --k-NN--> top-1 in %

The neighbours are training images, the queries validation images: the test split is left to the
evaluations. It costs one forward pass of at most 2 x `knn_images` images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.models import VisionTransformer
from torch import Tensor

from synclr_cli import rng
from synclr_cli.config import TrainConfig
from synclr_cli.data import labelled
from synclr_cli.data.labelled import Split
from synclr_cli.learning import backbone, knn
from synclr_cli.learning.runtime import Runtime
from synclr_cli.learning.transforms import EvalTransform
from synclr_cli.train.learner import Learner
from synclr_cli.train.objective import moments, normalise

ROWS = 256  # images through the teacher together


@dataclass(frozen=True)
class Grader:
    """Known images and queries, ready for the teacher."""

    known: Tensor  # [n, 3, S, S] uint8
    known_labels: Tensor  # [n]
    queries: Tensor  # [q, 3, S, S] uint8
    query_labels: Tensor  # [q]
    classes: int

    def grade(self, learner: Learner, rt: Runtime) -> float:
        """Return the share of queries whose class the neighbours vote for, in percent.

        The main rank computes it, the others wait and return NaN.
        """
        vit = learner.backbone()
        top1 = self._grade(vit, rt) if rt.is_main else float("nan")
        rt.barrier()
        return top1

    @torch.no_grad()
    def _grade(self, vit: VisionTransformer, rt: Runtime) -> float:
        of_channels = moments(rt.device)

        def features(images: Tensor) -> Tensor:
            rows = []
            for part in images.split(ROWS):
                with rt.autocast():
                    x = normalise(part.to(rt.device), of_channels)  # [b, 3, S, S]
                    rows.append(backbone.cls_features(vit, x).float())
            return torch.cat(rows)  # [n, D]

        labels = self.known_labels.to(rt.device)
        known, queries = features(self.known), features(self.queries)
        predicted = knn.predict(known, labels, queries, classes=self.classes)  # [q]
        return float((predicted == self.query_labels.to(rt.device)).float().mean() * 100)


def open_grader(config: TrainConfig) -> Grader | None:
    """Read the images to grade on; None if `train.knn_data` names none.

    Raises:
        DataError: they cannot be read or have no labels.
    """
    if not config.knn_data:
        return None
    data = labelled.open_data(config.knn_data, validation_share=0.2, seed=0)
    known = _read(data.splits[labelled.TRAIN], config)
    queries = _read(data.splits[labelled.VAL], config)
    return Grader(*known, *queries, classes=len(data.classes))


def _read(split: Split, config: TrainConfig) -> tuple[Tensor, Tensor]:
    size = config.image_size
    view = EvalTransform(size=size, resize=size, mean=(0, 0, 0), std=(1, 1, 1))
    chosen = rng.generator(0).permutation(len(split))[: config.knn_images]
    chosen.sort()  # images that lie together are read together
    images = torch.empty(len(chosen), 3, size, size, dtype=torch.uint8)
    for place, i in enumerate(chosen.tolist()):
        images[place] = (view(split.image(i)) * 255).round()
    return images, torch.from_numpy(split.labels[chosen])
