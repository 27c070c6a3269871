"""What of a recipe would not fit or not start, each with what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from timm.models import VisionTransformer

from synclr_cli.config import RenderConfig, TrainConfig
from synclr_cli.plan import memory

GB = 1e9


class Problem(NamedTuple):
    """A setting that would stop the run."""

    key: str
    what: str
    do: str


def train(
    config: TrainConfig,
    render: RenderConfig | None,
    count: int,
    ranks: int,
    vit: VisionTransformer,
) -> Iterator[Problem]:
    """Yield what `synclr train` would refuse of these settings."""
    batch = config.captions_per_batch
    if batch % ranks:
        fewer = next(n for n in range(min(ranks, batch), 0, -1) if batch % n == 0)
        yield Problem(
            "train.captions_per_batch",
            f"{batch} captions do not divide by {ranks} GPUs",
            f"--gpus {fewer}, or --set train.captions_per_batch={-(-batch // ranks) * ranks}",
        )
    if count < batch:
        yield Problem(
            "train.captions_per_batch",
            f"{batch} captions in a batch, and only {count} are written",
            f"--set train.captions_per_batch={count}, or more captions.count",
        )
    if render and config.views > render.views:
        yield Problem(
            "train.views",
            f"{config.views} views in a batch, and only {render.views} are rendered",
            f"--set render.views={config.views}, or --set train.views={render.views}",
        )
    patch = int(vit.patch_embed.patch_size[0])
    crop_sizes = {"image_size": config.image_size}
    if config.local_crops:
        crop_sizes["local_size"] = config.local_size
    for name, side in crop_sizes.items():
        if side % patch:
            yield Problem(
                f"train.{name}",
                f"{side} px do not divide into patches of {patch}",
                f"--set train.{name}={max(patch, side // patch * patch)}",
            )


def memory_problem(
    config: TrainConfig, vit: VisionTransformer, ranks: int, usable: float, gpu: str
) -> Problem:
    """Return what to change where training does not fit into `usable` bytes of a GPU."""
    need = memory.of_rank(config, vit, ranks).total()
    what = f"training needs {need / GB:.1f} GB a GPU; of {gpu} {usable / GB:.1f} GB can be used"
    if size := memory.largest_micro_batch(config, vit, ranks, usable):
        return Problem("train.micro_batch", what, f"--set train.micro_batch={size}")
    sharded = replace(config, shard="optimizer")
    more = ranks
    while more <= config.captions_per_batch:
        if size := memory.largest_micro_batch(sharded, vit, more, usable):
            do = f"--set train.shard=optimizer --set train.micro_batch={size}"
            if more == ranks:
                return Problem("train.shard", what, do)
            return Problem("plan.gpus", what, f"--gpus {more} {do}")
        more *= 2
    return Problem("plan.gpu", what, "a GPU with more memory, or a smaller train.arch")


def models(needs: Mapping[str, Mapping[str, float]], usable: float, gpu: str) -> Iterator[Problem]:
    """Yield the engines whose model does not fit into one GPU."""
    for stage in ("captions", "render"):
        total = sum(needs.get(stage, {}).values())
        if total > usable:
            smaller = "a smaller batch_size, " if needs[stage].get("cache", 0) > usable / 2 else ""
            yield Problem(
                f"{stage}.engine.name",
                f"the model needs {total / GB:.1f} GB; of {gpu} {usable / GB:.1f} GB can be used",
                f"{smaller}a smaller model, or a server that spreads it over GPUs (server:URL)",
            )
