"""Eyes for `train.py`: a small residual CNN, and how far two pictures are apart in what it sees.

    python tools/pocket/eyes.py TRAIN.parquet FOLDER --test TEST.parquet

writes FOLDER/eyes.safetensors. It is trained on the labels of the pictures `pocket:` is trained
on, and is made otherwise than the CNN of `judge.py` (residual, strided, folded input), which has
to judge what these eyes taught.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from judge import accuracy, fit
from prepare import read_pictures
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from synclr_cli.render.engines.pocket.pipeline import fold

WIDTHS = (64, 128, 256)  # at 16 x 16, 8 x 8, 4 x 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=14)
    given = parser.parse_args()
    torch.manual_seed(1)
    eyes = Eyes()
    fit(eyes, *read_pictures(given.pictures), given.epochs)
    print("top-1 on the test pictures", accuracy(eyes, *read_pictures(given.test)))
    save_file(eyes.state_dict(), given.folder / "eyes.safetensors")


class Eyes(nn.Module):
    """Pictures [B, 3, 32, 32], as `judge` standardises them -> scores of ten classes [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        narrow = (12, *WIDTHS[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(_layer(a, b, 1 if i == 0 else 2), _Residual(b))
            for i, (a, b) in enumerate(zip(narrow, WIDTHS, strict=True))
        )
        self.head = nn.Linear(WIDTHS[-1], 10)

    def see(self, pictures: Tensor) -> list[Tensor]:
        """Return what each stage sees, [B, C, H, W] each."""
        seen, x = [], fold(pictures)
        for stage in self.stages:
            x = stage(x)
            seen.append(x)
        return seen

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the scores."""
        return self.head(self.see(pictures)[-1].mean((2, 3)))


def far(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the distance of two batches of pictures as `see` returned them, [B].

    At each position the channels are scaled to length one (Zhang et al. 2018, LPIPS, without its
    learned weights), then squared differences are summed over channels and averaged over positions
    and stages; 0 to 4. The last stage also counts averaged over positions.
    """
    pairs = [(x.float(), y.float()) for x, y in zip(a, b, strict=True)]
    pairs.append((pairs[-1][0].mean((2, 3), keepdim=True), pairs[-1][1].mean((2, 3), keepdim=True)))
    each = [(F.normalize(x) - F.normalize(y)).square().sum(1).mean((1, 2)) for x, y in pairs]
    return torch.stack(each).mean(0)


def _layer(narrow: int, wide: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(narrow, wide, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wide), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_layer(width, width), _layer(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


if __name__ == "__main__":
    main()
