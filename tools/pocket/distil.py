"""Distil `pocket:`'s flow and its guidance into few steps of one pass; the same command continues.

    python tools/pocket/pairs.py FOLDER && python tools/pocket/distil.py FOLDER --steps 3000

    noise z --flow with guidance, many steps--> image x                       (the pairs)
    z --student, k of N steps, no gradient--> y at level s --student--> y - s v ~ x

The student starts from the flow's weights and takes N = 1, 2 or 4 equal Euler steps, one pass each.
At each level it is to end where the flow ended: squared differences of pixels, the distance in the
features of `perceptual.py` (FOLDER/perceptual.safetensors), and local contrast. Earlier steps are
its own, so that a later one learns to mend them. A batch is a function of (seed, step, number of
pairs); pairs that come while it runs are taken up every 100 steps. Writes FOLDER/distil.jsonl,
FOLDER/distil.checkpoint.safetensors every 100 steps and at SIGTERM, with the averaged weights as
FOLDER/few-steps.safetensors, which belongs beside the flow's file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from cnn import narrow
from diffusers import UNet2DConditionModel
from loop import Log, Stop, average, load_checkpoint, save_checkpoint
from pairs import SHARD
from perceptual import FeatureNet, perceptual_loss, read_feature_net
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from synclr_cli.render.engines.pocket import weights
from synclr_cli.render.engines.pocket.pipeline import suit, unfold

CHECKPOINT = "distil.checkpoint.safetensors"
EMA = 0.995
# (steps in all, steps taken before this one) -> share of the batches
TASKS = {(1, 0): 0.4, (2, 1): 0.45, (4, 1): 0.05, (4, 2): 0.05, (4, 3): 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, default=weights.SHIPPED, help="of the flow")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--perceptual", type=float, default=0.2, help="weight of the features")
    parser.add_argument("--contrast", type=float, default=4.0, help="weight of local deviations")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = weights.load(options.weights)
    pairs = Pairs(options.folder / "pairs")
    pairs.read_more()
    net = read_feature_net(options.folder / "perceptual.safetensors", device)
    student = pipe.unet.to(device).train()
    averaged = weights.load(options.weights).unet.to(device)
    suit(student, device)
    optimizer = torch.optim.AdamW(student.parameters(), options.lr, (0.9, 0.99), weight_decay=0.0)
    step = load_checkpoint(options.folder / CHECKPOINT, student, averaged, optimizer)
    log, stop = Log(options.folder / "distil.jsonl", options.batch, every=25), Stop()
    while step < options.steps and not stop.requested:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate(step, options.steps)
        draw = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        images, text, noise = (part.to(device) for part in pairs.draw(options.batch, draw))
        chosen = torch.multinomial(torch.tensor([*TASKS.values()]), 1, generator=draw)
        steps, taken = [*TASKS][int(chosen)]
        pixels, apart, contrast = losses(student, net, images, text, noise, steps, taken)
        (pixels + options.perceptual * apart + options.contrast * contrast).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        average(averaged, student, min(EMA, (1 + step) / (10 + step)))
        task = f"{taken + 1} of {steps}"
        values = {"pixels": pixels, "perceptual": apart, "contrast": contrast}
        log.add(step, {f"{name} {task}": value.item() for name, value in values.items()})
        if step % 100 == 0 and step < options.steps:
            keep(options, student, averaged, optimizer, step)
            pairs.read_more()
    keep(options, student, averaged, optimizer, step)


def keep(
    options: argparse.Namespace,
    student: nn.Module,
    averaged: UNet2DConditionModel,
    optimizer: torch.optim.AdamW,
    step: int,
) -> None:
    """Write where the training stands, and the averaged weights as the engine reads them."""
    save_checkpoint(options.folder / CHECKPOINT, student, averaged, optimizer, step)
    partial = options.folder / "few-steps.partial"
    weights.save_few_steps(partial, averaged, options.weights)
    partial.replace(options.folder / weights.FEW_STEPS)


def losses(
    student: nn.Module, net: FeatureNet, images: Tensor, text: Tensor, noise: Tensor,
    steps: int, taken: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return how far the student's image is from the teacher's: pixels, features, contrast.

    Args:
        student: the UNet.
        net: the CNN whose features count.
        images: the teacher's, as samples [B, 12, 16, 16].
        text: the captions' vectors [B, 128].
        noise: what the teacher began with [B, 12, 16, 16].
        steps: of the whole way from noise to image.
        taken: how many of them the student goes first, without a gradient.
    """
    with torch.no_grad():
        samples = noise
        for i in range(taken):
            samples = samples - velocity(student, samples, 1 - i / steps, text) / steps
    level = 1 - taken / steps
    ends = samples - level * velocity(student, samples, level, text)  # [B, 12, 16, 16]
    pixels = (ends - images).square().mean()
    return pixels, perceptual_loss(net, ends, images), contrast_loss(ends, images)


def contrast_loss(samples: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared difference of local deviations, samples [B, 12, 16, 16] both.

    sigma of each colour in squares of 4, 8 and 32 pixels. What a student cannot foretell, squared
    differences of pixels would have it leave out: its images had 94 % of the deviation.
    """
    apart = [
        (_deviations(unfold(samples), side) - _deviations(unfold(targets), side)).square().mean()
        for side in (4, 8, 32)
    ]
    return torch.stack(apart).mean()


def _deviations(images: Tensor, side: int) -> Tensor:
    mean = functional.avg_pool2d(images, side)  # [B, 3, 32 / side, 32 / side]
    variance = functional.avg_pool2d(images.square(), side) - mean.square()
    return (variance.clamp(min=0) + 1e-4).sqrt()


def velocity(student: nn.Module, samples: Tensor, level: float, text: Tensor) -> Tensor:
    """Return noise - image as the student sees it at a noise level, [B, 12, 16, 16] float32."""
    times = torch.full((len(samples),), level * 1000, device=samples.device)
    with narrow(samples.device):
        return student(samples, times, None, class_labels=text, return_dict=False)[0].float()


def rate(step: int, steps: int) -> float:
    """Return the share of the peak rate: up over 50 steps, level, down over the last 60 %."""
    return min((step + 1) / 50, 1.0, (steps - step) / (0.6 * steps))


class Pairs:
    """What pairs.py has written so far."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._shards: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return sum(len(shard["text"]) for shard in self._shards)

    def read_more(self) -> None:
        """Read the shards that have come, in the order of their numbers.

        Raises:
            SystemExit: there are none.
        """
        while (path := self._folder / f"{len(self._shards):05d}.safetensors").exists():
            self._shards.append(load_file(path))
        if not self._shards:
            raise SystemExit(f"no pairs in {self._folder}: make them with tools/pocket/pairs.py")

    def draw(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return images [B, 12, 16, 16], text [B, 128] and noise [B, 12, 16, 16], float32."""
        rows = torch.randint(len(self), (count,), generator=draw).tolist()
        at = [divmod(row, SHARD) for row in rows]
        images, text, noise = (
            torch.stack([self._shards[shard][name][row] for shard, row in at]).float()
            for name in ("images", "text", "noise")
        )
        return images, text, noise


if __name__ == "__main__":
    main()
