"""The CNNs that grade `pocket:`'s images, and what is read from their features.

images [N, 32, 32, 3] uint8 --standardised--> CNN --> features [N, 128] --> classes
"""

from __future__ import annotations

import numpy as np
import sentences
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synclr_cli.learning import runtime

CPU = torch.device("cpu")
MEAN, SPREAD = 0.47, 0.25  # of CIFAR-10's values, 0 to 1: what the CNNs are given is standardised


def make_cnn() -> nn.Module:
    """Return a small classifier of 32 x 32 images."""

    def block(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.MaxPool2d(2),
        )  # fmt: skip

    return nn.Sequential(
        block(3, 32), block(32, 64), block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip


def fit(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, epochs: int, batch: int = 100
) -> None:
    """Train with mirrored and shifted images, one cycle of the learning rate."""
    inputs, targets = inputs_of(images), torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    steps = epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(inputs))
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            x = inputs[rows]
            if torch.rand(()) < 0.5:
                x = x.flip(-1)
            up, left = torch.randint(0, 9, (2,)).tolist()
            x = F.pad(x, (4, 4, 4, 4), mode="reflect")[..., up : up + 32, left : left + 32]
            with narrow():
                scores = model(x)
            loss = F.cross_entropy(scores.float(), targets[rows], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def narrow(device: torch.device = CPU) -> torch.autocast:
    """Multiply in bfloat16 inside, where that is faster."""
    return torch.autocast(device.type, torch.bfloat16, runtime.has_fast_bfloat16(device))


@torch.inference_mode()
def features(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Return what the last layer of a CNN is given, [N, 128]."""
    model.eval()
    return torch.cat([model[:-1](x) for x in inputs_of(images).split(500)]).double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared Frechet distance of two normal distributions fitted to features."""
    means = a.mean(0) - b.mean(0)
    first, second = np.cov(a.T), np.cov(b.T)
    shared = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    return float(means @ means + np.trace(first) + np.trace(second) - 2 * shared)


def diversity(values: np.ndarray, captions: np.ndarray) -> float:
    """Return the mean distance of two images of one caption, over all captions.

    Args:
        values: pixels or features of the images [N, ...].
        captions: which caption an image is of [N].
    """
    flat = values.reshape(len(values), -1).astype(np.float64)
    means = []
    for caption in np.unique(captions):
        own = flat[captions == caption]  # [K, D]
        between = np.linalg.norm(own[:, None] - own[None], axis=2)  # [K, K]
        if len(own) > 1:
            means.append(between.sum() / (len(own) * (len(own) - 1)))
    return float(np.mean(means))


@torch.inference_mode()
def predict(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Return the classes a model sees [N]."""
    model.eval()
    return torch.cat([model(x).argmax(1) for x in inputs_of(images).split(500)]).numpy()


def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images that a model sees as labelled."""
    return float((predict(model, images) == labels).mean())


def by_class(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return `accuracy` for each class."""
    right = predict(model, images) == labels
    return {k: float(right[labels == i].mean()) for i, k in enumerate(sentences.CLASSES)}


def inputs_of(images: np.ndarray) -> Tensor:
    """Return images [N, 32, 32, 3] uint8 standardised, [N, 3, 32, 32]."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / SPREAD
