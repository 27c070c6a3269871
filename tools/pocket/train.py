"""Train `pocket:` on what `prepare.py` made; the same command continues.

    python tools/pocket/train.py FOLDER --steps 6000

    picture + noise at level s, a sentence about the picture --UNet--> noise - picture

Rectified flow with logit-normal levels (Esser et al. 2024), AdamW, a constant rate that falls
linearly over the second half, an average of the weights (EMA), one sentence in ten left out for
classifier-free guidance; bfloat16 where the machine multiplies it, a GPU if there is one. With
`--eyes W` the picture that the UNet takes a mixture for must also look like the real one to the
CNN that `eyes.py` left in FOLDER. A batch is a function of (seed, step). Writes FOLDER/log.jsonl,
FOLDER/checkpoint.safetensors every 200 steps and at SIGTERM, and at the end
FOLDER/pocket.safetensors. `--steps` may be changed between runs: before the second half begins it
leaves no mark, later the rate goes on from where it would be; one that has ended is taken up anew.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path

import torch
from eyes import Eyes, far
from judge import MEAN, SPREAD
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from synclr_cli.learning import runtime
from synclr_cli.render.engines.pocket.pipeline import fold, make_unet, suit, unfold
from synclr_cli.render.engines.pocket.weights import save

EMA = 0.9995
UNSAID = 0.1  # share of the pictures that get no sentence
MENTION = 0.8  # of a colour or ground, where it is rare
BALANCE = 0.07  # a look with a larger share is mentioned less, so that all are about equally often


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=9e-4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--eyes", type=float, default=0.0, help="weight of what eyes.py sees")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = Batches(given.folder, given.batch, given.seed)
    torch.manual_seed(given.seed)
    eyes = read_eyes(given.folder / "eyes.safetensors", device) if given.eyes else None
    unet = make_unet(given.width, batches.vectors.shape[1]).to(device)
    averaged = make_unet(given.width, batches.vectors.shape[1]).to(device)
    averaged.load_state_dict(unet.state_dict())
    suit(unet, device)
    optimizer = torch.optim.AdamW(unet.parameters(), given.lr, betas=(0.9, 0.99), weight_decay=0.0)
    checkpoint = given.folder / "checkpoint.safetensors"
    step = resume(checkpoint, unet, averaged, optimizer) if checkpoint.exists() else 0
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))

    narrow = torch.autocast(device.type, torch.bfloat16, runtime.has_fast_bfloat16(device))
    started, total, far_off, since = time.monotonic(), 0.0, 0.0, 0
    with open(given.folder / "log.jsonl", "a", encoding="utf-8") as log:
        while step < given.steps and not stopping:
            for group in optimizer.param_groups:
                group["lr"] = given.lr * rate(step, given.steps)
            pictures, text, noise, level = (drawn.to(device) for drawn in batches.draw(step))
            mixed = (1 - level) * pictures + level * noise
            times = level.flatten() * 1000
            with narrow:
                flow = unet(mixed, times, None, class_labels=text, return_dict=False)[0]
            loss = (flow.float() - (noise - pictures)).square().mean()
            apart = loss.new_zeros(())
            if eyes is not None:
                guessed = mixed - level * flow.float()
                apart = look(eyes, pictures, guessed, level, narrow)
            (loss + given.eyes * apart).backward()
            nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            average(averaged, unet, min(EMA, (1 + step) / (10 + step)))
            total, far_off, since = total + loss.item(), far_off + apart.item(), since + 1
            if step % 50 == 0:
                speed = since * given.batch / (time.monotonic() - started)
                line = {
                    "step": step,
                    "loss": total / since,
                    "eyes": far_off / since,
                    "images_per_s": round(speed, 1),
                }
                log.write(json.dumps(line) + "\n")
                log.flush()
                started, total, far_off, since = time.monotonic(), 0.0, 0.0, 0
            if step % 200 == 0:
                keep(checkpoint, unet, averaged, optimizer, step)
    keep(checkpoint, unet, averaged, optimizer, step)
    if step >= given.steps:
        save(given.folder / "pocket.safetensors", averaged, batches.whitening)


def read_eyes(path: Path, device: torch.device) -> Eyes:
    """Return what `eyes.py` trained, for looking only."""
    eyes = Eyes()
    eyes.load_state_dict(load_file(path))
    return eyes.to(device).eval().requires_grad_(False)


def look(
    eyes: Eyes, pictures: Tensor, guessed: Tensor, level: Tensor, narrow: torch.autocast
) -> Tensor:
    """Return how far the pictures and the UNet's guesses at them, both [B, 12, 16, 16], look apart.

    Only the three quarters of the batch with the least noise are looked at: under much noise the
    best guess is no picture, but the mean of many.
    """
    clear = level.flatten().argsort()[: len(level) * 3 // 4]
    with narrow:
        with torch.no_grad():
            wanted = eyes.see(standardised(pictures[clear]))
        return far(eyes.see(standardised(guessed[clear])), wanted).mean()


def standardised(samples: Tensor) -> Tensor:
    """Return samples [B, 12, 16, 16] in -1..1 as the pictures [B, 3, 32, 32] that eyes.py sees."""
    return (unfold(samples) / 2 + 0.5 - MEAN) / SPREAD


def keep(
    path: Path, unet: nn.Module, averaged: nn.Module, optimizer: torch.optim.AdamW, step: int
) -> None:
    """Write where the training stands, whole or not at all."""
    parts = {"unet": unet.state_dict(), "averaged": averaged.state_dict()}
    moments = optimizer.state_dict()["state"]
    parts |= {f"moments/{i}": of_parameter for i, of_parameter in moments.items()}
    partial = path.with_suffix(".partial")
    flat = {f"{part}/{k}": v for part, state in parts.items() for k, v in state.items()}
    save_file(flat, partial, {"step": str(step)})
    partial.replace(path)


def resume(path: Path, unet: nn.Module, averaged: nn.Module, optimizer: torch.optim.AdamW) -> int:
    """Go on from what `keep` wrote; return the step."""
    with safe_open(path, "pt") as file:
        parts: dict[str, dict[str, Tensor]] = {}
        for key in file.keys():  # noqa: SIM118 - no dict
            part, _, name = key.rpartition("/")
            parts.setdefault(part, {})[name] = file.get_tensor(key)
        step = int(file.metadata()["step"])
    unet.load_state_dict(parts["unet"])
    averaged.load_state_dict(parts["averaged"])
    moments = {int(k.rpartition("/")[2]): v for k, v in parts.items() if k.startswith("moments")}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return step


def rate(step: int, steps: int) -> float:
    """Return the share of the peak rate: up over 200 steps, level, down over the second half."""
    return min((step + 1) / 200, 1.0, 2 * (steps - step) / steps)


@torch.no_grad()
def average(averaged: torch.nn.Module, current: torch.nn.Module, keep: float) -> None:
    """Move `averaged` towards `current` by a share 1 - keep."""
    torch._foreach_lerp_(list(averaged.parameters()), list(current.parameters()), 1 - keep)


class Batches:
    """Pictures with a sentence that is true of each, drawn anew for each step."""

    def __init__(self, folder: Path, size: int, seed: int):
        read = load_file(folder / "pictures.safetensors")
        self._pictures, self._looks = read["pictures"], read["looks"]  # [N, 3, 32, 32], [N, 3]
        texts = load_file(folder / "texts.safetensors")
        self.vectors = texts["vectors"]  # [T, 128]
        self.whitening = {
            k.removeprefix("whitening."): v for k, v in texts.items() if k.startswith("whitening.")
        }
        self._said: dict[tuple[int, ...], list[int]] = {}
        for row, said in enumerate(texts["looks"].tolist()):
            self._said.setdefault(tuple(said), []).append(row)
        self._mention = [_mention(self._looks[:, column]) for column in (1, 2)]
        self._size, self._seed = size, seed

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return folded pictures [B, 12, 16, 16], text [B, 128], noise, and levels [B, 1, 1, 1]."""
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        rows = torch.randint(len(self._pictures), (self._size,), generator=draw)
        pictures = self._pictures[rows].float() / 127.5 - 1
        flipped = torch.rand(self._size, 1, 1, 1, generator=draw) < 0.5
        pictures = fold(torch.where(flipped, pictures.flip(-1), pictures))
        chance = torch.rand(self._size, 4, generator=draw)
        text = torch.zeros(self._size, self.vectors.shape[1])
        for i, (kind, colour, ground) in enumerate(self._looks[rows].tolist()):
            if chance[i, 0] < UNSAID:
                continue  # zero: the mean of all sentences
            colour = colour if chance[i, 1] < self._mention[0][colour] else -1
            ground = ground if chance[i, 2] < self._mention[1][ground] else -1
            fitting = self._said[kind, colour, ground]
            text[i] = self.vectors[fitting[int(chance[i, 3] * len(fitting))]]
        noise = torch.randn(pictures.shape, generator=draw)
        level = torch.sigmoid(torch.randn(self._size, 1, 1, 1, generator=draw))
        return pictures, text, noise, level


def _mention(looks: Tensor) -> dict[int, float]:
    """Return how often each look is said of pictures that have it: the common ones less often."""
    share = torch.bincount(looks + 1, minlength=10) / len(looks)
    said = {k: min(MENTION, BALANCE / max(float(share[k + 1]), 1e-9)) for k in range(9)}
    return {-1: 0.0, **said}


if __name__ == "__main__":
    main()
