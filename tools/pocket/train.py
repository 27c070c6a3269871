"""Train `pocket:`'s flow on what `prepare.py` made; the same command continues.

    python tools/pocket/train.py FOLDER --steps 6000

    image + noise at level s, a sentence about the image --UNet--> noise - image

Rectified flow with logit-normal levels (Esser et al. 2024), AdamW, a constant rate that falls
linearly over the second half, an average of the weights (EMA), one sentence in ten left out for
classifier-free guidance; bfloat16 where the machine multiplies it, a GPU if there is one. With
`--perceptual W` the image that the UNet takes a mixture for must also be near the real one in the
features that `perceptual.py` left in FOLDER. A batch is a function of (seed, step). Writes
FOLDER/log.jsonl, FOLDER/checkpoint.safetensors every 200 steps and at SIGTERM, and at the end
FOLDER/pocket.safetensors. `--steps` may be changed between runs: before the second half begins it
leaves no mark, later the rate goes on from where it would be; one that has ended is continued.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from cnn import narrow
from loop import Log, Stop, average, load_checkpoint, save_checkpoint
from perceptual import FeatureNet, perceptual_loss, read_feature_net
from safetensors.torch import load_file
from torch import Tensor, nn

from synclr_cli.render.engines.pocket.pipeline import fold, make_unet, suit
from synclr_cli.render.engines.pocket.weights import save

EMA = 0.9995
UNSAID = 0.1  # share of the images that get no sentence
MENTION = 0.8  # of a colour or ground, where it is rare
BALANCE = (
    0.07  # an attribute with a larger share is mentioned less, so that all are about equally often
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=9e-4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument(
        "--perceptual", type=float, default=0.0, help="weight of what perceptual.py sees"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = Batches(options.folder, options.batch, options.seed)
    torch.manual_seed(options.seed)
    net = None
    if options.perceptual:
        net = read_feature_net(options.folder / "perceptual.safetensors", device)
    unet = make_unet(options.width, batches.vectors.shape[1]).to(device)
    averaged = make_unet(options.width, batches.vectors.shape[1]).to(device)
    averaged.load_state_dict(unet.state_dict())
    suit(unet, device)
    optimizer = torch.optim.AdamW(unet.parameters(), options.lr, (0.9, 0.99), weight_decay=0.0)
    checkpoint = options.folder / "checkpoint.safetensors"
    step = load_checkpoint(checkpoint, unet, averaged, optimizer)
    log, stop = Log(options.folder / "log.jsonl", options.batch, every=50), Stop()
    while step < options.steps and not stop.requested:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate(step, options.steps)
        flow_loss, apart = losses(unet, net, *(part.to(device) for part in batches.draw(step)))
        (flow_loss + options.perceptual * apart).backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        average(averaged, unet, min(EMA, (1 + step) / (10 + step)))
        log.add(step, {"loss": flow_loss.item(), "perceptual": apart.item()})
        if step % 200 == 0:
            save_checkpoint(checkpoint, unet, averaged, optimizer, step)
    save_checkpoint(checkpoint, unet, averaged, optimizer, step)
    if step >= options.steps:
        save(options.folder / "pocket.safetensors", averaged, batches.whitening)


def losses(
    unet: nn.Module, net: FeatureNet | None, images: Tensor, text: Tensor, noise: Tensor,
    level: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the flow's loss, and how far the UNet's guesses look from the images (0 without net).

    The flow's: |v(y, s, text) - (noise - image)|^2 at y = (1 - s) image + s noise.
    """
    mixed = (1 - level) * images + level * noise  # [B, 12, 16, 16]
    with narrow(images.device):
        flow = unet(mixed, level.flatten() * 1000, None, class_labels=text, return_dict=False)[0]
    flow = flow.float()
    loss = (flow - (noise - images)).square().mean()
    if net is None:
        return loss, loss.new_zeros(())
    return loss, perceptual_term(net, images, mixed - level * flow, level)


def perceptual_term(net: FeatureNet, images: Tensor, guesses: Tensor, level: Tensor) -> Tensor:
    """Return how far the images and the UNet's guesses at them, both [B, 12, 16, 16], are apart.

    Only the three quarters of the batch with the least noise count: under much noise the best
    guess is no image, but the mean of many.
    """
    clear = level.flatten().argsort()[: len(level) * 3 // 4]
    return perceptual_loss(net, guesses[clear], images[clear])


def rate(step: int, steps: int) -> float:
    """Return the share of the peak rate: up over 200 steps, level, down over the second half."""
    return min((step + 1) / 200, 1.0, 2 * (steps - step) / steps)


class Batches:
    """Images with a sentence that is true of each, sampled for each step."""

    def __init__(self, folder: Path, size: int, seed: int):
        read = load_file(folder / "images.safetensors")
        self._images, self._attributes = (
            read["images"],
            read["attributes"],
        )  # [N, 3, 32, 32], [N, 3]
        texts = load_file(folder / "texts.safetensors")
        self.vectors = texts["vectors"]  # [T, 128]
        self.whitening = {
            k.removeprefix("whitening."): v for k, v in texts.items() if k.startswith("whitening.")
        }
        self._said: dict[tuple[int, ...], list[int]] = {}
        for row, said in enumerate(texts["attributes"].tolist()):
            self._said.setdefault(tuple(said), []).append(row)
        self._mention = [_mention(self._attributes[:, column]) for column in (1, 2)]
        self._size, self._seed = size, seed

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return folded images [B, 12, 16, 16], text [B, 128], noise, and levels [B, 1, 1, 1]."""
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        rows = torch.randint(len(self._images), (self._size,), generator=draw)
        images = self._images[rows].float() / 127.5 - 1
        flipped = torch.rand(self._size, 1, 1, 1, generator=draw) < 0.5
        images = fold(torch.where(flipped, images.flip(-1), images))
        chance = torch.rand(self._size, 4, generator=draw)
        text = torch.zeros(self._size, self.vectors.shape[1])
        for i, (kind, colour, ground) in enumerate(self._attributes[rows].tolist()):
            if chance[i, 0] < UNSAID:
                continue  # zero: the mean of all sentences
            colour = colour if chance[i, 1] < self._mention[0][colour] else -1
            ground = ground if chance[i, 2] < self._mention[1][ground] else -1
            fitting = self._said[kind, colour, ground]
            text[i] = self.vectors[fitting[int(chance[i, 3] * len(fitting))]]
        noise = torch.randn(images.shape, generator=draw)
        level = torch.sigmoid(torch.randn(self._size, 1, 1, 1, generator=draw))
        return images, text, noise, level


def _mention(attributes: Tensor) -> dict[int, float]:
    """Return how often an attribute is said of images that have it: the common ones less often."""
    share = torch.bincount(attributes + 1, minlength=10) / len(attributes)
    said = {k: min(MENTION, BALANCE / max(float(share[k + 1]), 1e-9)) for k in range(9)}
    return {-1: 0.0, **said}


if __name__ == "__main__":
    main()
