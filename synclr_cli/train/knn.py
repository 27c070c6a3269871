"""A cheap grade on the way: k nearest neighbours of the teacher's features on labelled pictures.

    train.knn_data --open--> uint8 pictures, kept --teacher--> cls features --k-NN--> top-1 in %

The neighbours are training pictures, the asked ones validation pictures: the test split is left to
the judges. It costs one forward pass of at most 2 x `knn_pictures` pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
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

ROWS = 256  # pictures through the teacher together


@dataclass(frozen=True)
class Neighbourhood:
    """Known and asked pictures, ready for the teacher."""

    known: Tensor  # [n, 3, S, S] uint8
    known_labels: Tensor  # [n]
    asked: Tensor  # [q, 3, S, S] uint8
    asked_labels: Tensor  # [q]
    classes: int

    def grade(self, learner: Learner, rt: Runtime) -> float:
        """Return the share of asked pictures whose class the neighbours vote for, in percent.

        The main rank looks, the others wait for it.
        """
        top1 = self._grade(learner, rt) if rt.is_main else float("nan")
        rt.barrier()
        return top1

    @torch.no_grad()
    def _grade(self, learner: Learner, rt: Runtime) -> float:
        of_channels = moments(rt.device)

        def features(pictures: Tensor) -> Tensor:
            rows = []
            for part in pictures.split(ROWS):
                with rt.autocast():
                    x = normalise(part.to(rt.device), of_channels)  # [b, 3, S, S]
                    rows.append(backbone.cls_features(learner.teacher.vit, x).float())
            return torch.cat(rows)  # [n, D]

        found = knn.predict(
            features(self.known),
            self.known_labels.to(rt.device),
            features(self.asked),
            classes=self.classes,
        )  # [q]
        return float((found == self.asked_labels.to(rt.device)).float().mean() * 100)


def open_neighbourhood(config: TrainConfig) -> Neighbourhood | None:
    """Read the pictures to grade on; None if there are none to.

    Raises:
        DataError: they cannot be read or have no labels.
    """
    if not config.knn_data:
        return None
    data = labelled.open_data(config.knn_data, validation_share=0.2, seed=0)
    known = _read(data.splits[labelled.TRAIN], config)
    asked = _read(data.splits[labelled.VAL], config)
    return Neighbourhood(*known, *asked, classes=len(data.classes))


def _read(split: Split, config: TrainConfig) -> tuple[Tensor, Tensor]:
    size = config.image_size
    view = EvalTransform(size=size, resize=size, mean=(0, 0, 0), std=(1, 1, 1))
    drawn = rng.generator(0).permutation(len(split))[: config.knn_pictures]
    drawn.sort()  # pictures that lie together are read together
    pictures = torch.empty(len(drawn), 3, size, size, dtype=torch.uint8)
    for place, i in enumerate(drawn.tolist()):
        pictures[place] = (view(split.image(i)) * 255).round()
    return pictures, torch.from_numpy(split.labels[drawn])
