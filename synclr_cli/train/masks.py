"""Which patches of which images the student does not see (iBOT, random masking).

Exactly floor(B x probability) images of the whole batch are masked, drawn at random over captions
and views alike, and in each exactly floor(N x ratio) patches; the products are rounded to doubles
first, as in the released code (100 x 0.29 gives 28).

    ids of all images of the batch --draw--> masks of one rank's images

Shapes: B images of the batch over all ranks, b of this rank, N patches of an image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from synclr_cli import rng
from synclr_cli.config import TrainConfig
from synclr_cli.errors import UsageError


def require(config: TrainConfig, patches: int) -> None:
    """Refuse masks that hide nothing where hidden patches are to be predicted.

    Raises:
        UsageError: says what would mask one.
    """
    images = config.captions_per_batch * config.views * config.global_crops
    shares = {"mask_probability": (images, "images"), "mask_ratio": (patches, "patches")}
    for name, (count, what) in shares.items():
        share = getattr(config, name)
        if config.patch_weight and int(count * share) == 0:
            raise UsageError(
                f"train.{name}",
                got=f"{share:g}, which masks none of {count} {what}",
                expected=f"at least {1 / count:.4g}",
                do="raise it, or add --set train.patch_weight=0",
            )


def draw(
    seed: int,
    step: int,
    ids: NDArray[np.uint64],
    own: slice,
    *,
    patches: int,
    probability: float,
    ratio: float,
    of_caption: int = 0,
) -> NDArray[np.bool_]:
    """Return this rank's masks, [b, N], True where the student sees the mask token.

    Args:
        seed, step: of the run; the draw is a function of these and the ids.
        ids: of all images of the batch, [B].
        own: which of them are this rank's.
        patches: N.
        probability: share of the images that are masked; the count is cut, not rounded.
        ratio: share of the patches masked in those; the count is cut, not rounded.
        of_caption: crops of a caption, which follow each other; the masked ones are then the first
            of every caption, as far as they go, as the released command has it. 0: at random.
    """
    masked_images = int(len(ids) * probability)
    masked_patches = int(patches * ratio)
    order = rng.uniform("train.masked pictures", seed, step, ids)  # [B]
    if of_caption:
        order = (np.arange(len(ids)) % of_caption).astype(float)  # [B]
    masked = np.zeros(len(ids), bool)  # [B]
    masked[np.argsort(order, kind="stable")[:masked_images]] = True
    masks = np.zeros((len(ids[own]), patches), bool)  # [b, N]
    rows = np.flatnonzero(masked[own])  # [m]
    lots = rng.uniform(
        "train.masked patches", seed, step, ids[own][rows][:, None], np.arange(patches)
    )  # [m, N]
    chosen = np.argsort(lots, axis=1, kind="stable")[:, :masked_patches]  # [m, K]
    masks[rows[:, None], chosen] = True
    return masks
