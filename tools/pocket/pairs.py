"""Let `pocket:`'s flow make the pairs that `distil.py` reads: noise, and the image it ends at.

    python tools/pocket/pairs.py FOLDER --count 8192

    noise of a seed, a sentence of FOLDER/texts.safetensors --guided flow--> image

Sentences come class by class, so that each class has as many images. A shard of 512 is a function
of (seed, its number). Writes FOLDER/pairs/00000.safetensors and so on; those that are there stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synclr_cli.learning import runtime
from synclr_cli.render.engines.pocket import weights
from synclr_cli.render.engines.pocket.pipeline import SHAPE, PocketPipeline, suit

SHARD = 512  # pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, default=weights.SHIPPED, help="of the flow")
    parser.add_argument("--count", type=int, default=8192)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    texts = load_file(options.folder / "texts.safetensors")
    pipe = weights.load(options.weights)
    kept = pipe.whitening.projection.half()
    if not torch.equal(texts["whitening.projection"].half(), kept):
        raise SystemExit(f"texts.safetensors is not as {options.weights} reads: prepare --weights")
    by_class = [texts["vectors"][texts["attributes"][:, 0] == kind] for kind in range(10)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    suit(pipe.unet.to(runtime.dtype("auto", device)), device)
    (options.folder / "pairs").mkdir(exist_ok=True)
    for number in range(options.count // SHARD):
        path = options.folder / "pairs" / f"{number:05d}.safetensors"
        if not path.exists():
            shard = make_shard(pipe, by_class, options, number)
            save_file(shard, path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
            print(path, flush=True)


def make_shard(
    pipe: PocketPipeline, by_class: list[Tensor], options: argparse.Namespace, number: int
) -> dict[str, Tensor]:
    """Return `text` [N, 128], `noise` and `images` [N, 12, 16, 16] of a shard, float16."""
    draw = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
    chosen = [
        by_class[i % 10][int(torch.randint(len(by_class[i % 10]), (), generator=draw))]
        for i in range(SHARD)
    ]
    text, noise = torch.stack(chosen), torch.randn(SHARD, *SHAPE, generator=draw)
    noise = noise.half().float()  # as kept
    images = [
        pipe(
            prompt_embeds=some, latents=start, num_inference_steps=options.steps,
            guidance_scale=options.guidance, output_type="latent",
        ).images.cpu()
        for some, start in zip(text.split(64), noise.split(64), strict=True)
    ]  # fmt: skip
    shard = {"text": text, "noise": noise, "images": torch.cat(images)}
    return {name: tensor.half() for name, tensor in shard.items()}


if __name__ == "__main__":
    main()
