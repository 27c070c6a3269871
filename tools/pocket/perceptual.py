"""A CNN's features as a distance between images: what `train.py` and `distil.py` learn from.

    python tools/pocket/perceptual.py TRAIN.parquet FOLDER --test TEST.parquet

writes FOLDER/perceptual.safetensors. The CNN learns the labels of the images `pocket:` is trained
on. It is built otherwise than the CNN of `evaluate.py` (residual, strided, folded input), which
has to grade what this one taught.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from cnn import MEAN, SPREAD, accuracy, fit, narrow
from prepare import read_images
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from synclr_cli.render.engines.pocket.pipeline import fold, unfold

WIDTHS = (64, 128, 256)  # at 16 x 16, 8 x 8, 4 x 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=14)
    options = parser.parse_args()
    torch.manual_seed(1)
    net = FeatureNet()
    fit(net, *read_images(options.images), options.epochs)
    print("top-1 on the test images", accuracy(net, *read_images(options.test)))
    save_file(net.state_dict(), options.folder / "perceptual.safetensors")


class FeatureNet(nn.Module):
    """Standardised images [B, 3, 32, 32] -> scores of ten classes [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (12, *WIDTHS[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(_layer(a, b, 1 if i == 0 else 2), _Residual(b))
            for i, (a, b) in enumerate(zip(inputs, WIDTHS, strict=True))
        )
        self.head = nn.Linear(WIDTHS[-1], 10)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return what each stage makes of the images, [B, C, H, W] each."""
        stages, x = [], fold(images)
        for stage in self.stages:
            x = stage(x)
            stages.append(x)
        return stages

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        return self.head(self.features(images)[-1].mean((2, 3)))


def read_feature_net(path: Path, device: torch.device) -> FeatureNet:
    """Return the trained CNN, frozen."""
    net = FeatureNet()
    net.load_state_dict(load_file(path))
    return net.to(device).eval().requires_grad_(False)


def perceptual_loss(net: FeatureNet, samples: Tensor, targets: Tensor) -> Tensor:
    """Return the mean distance of samples from their targets, [B, 12, 16, 16] both, in -1..1."""
    with narrow(samples.device):
        with torch.no_grad():
            aims = net.features(standardised(targets))
        return distance(net.features(standardised(samples)), aims).mean()


def standardised(samples: Tensor) -> Tensor:
    """Return samples [B, 12, 16, 16] in -1..1 as images [B, 3, 32, 32] for the CNNs."""
    return (unfold(samples) / 2 + 0.5 - MEAN) / SPREAD


def distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the distance of two batches of images by their `features`, [B].

    At each position the channels are scaled to length one (Zhang et al. 2018, LPIPS, without its
    learned weights), then squared differences are summed over channels and averaged over positions
    and stages; 0 to 4. The last stage also counts averaged over positions.
    """
    pairs = [(x.float(), y.float()) for x, y in zip(a, b, strict=True)]
    pairs.append((pairs[-1][0].mean((2, 3), keepdim=True), pairs[-1][1].mean((2, 3), keepdim=True)))
    apart = [(F.normalize(x) - F.normalize(y)).square().sum(1).mean((1, 2)) for x, y in pairs]
    return torch.stack(apart).mean(0)


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_layer(width, width), _layer(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


if __name__ == "__main__":
    main()
