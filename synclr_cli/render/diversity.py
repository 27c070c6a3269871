"""How far the views of a caption lie apart: the positives of SynCLR live on that.

    images -> descriptors x [N, D] (small pixels, or features of a backbone)
           -> spread within and between captions, effective number of views

Few-step and strongly guided generators draw nearly one image per caption; then a caption's
positives teach no more than augmentations of one image would. N images, C captions, V views of a
caption, D numbers of a descriptor.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synclr_cli.data import artifacts, storage
from synclr_cli.data.images import DECODE_ERRORS
from synclr_cli.data.manifest import open_dataset
from synclr_cli.render import quality

SIDE = 16  # pixels: layout and colour, not texture
LOOKED_AT = 8192  # images, of parts all over the set
# Mean cosine between views from which on a caption counts as one image: 4 views then are worth
# 1.4. `pocket:` at guidance 1 to 4 has 0.15 to 0.53, `procedural:` 0.77 (docs/render.md).
COLLAPSED = 0.9
_PER_PART = 64  # images of a part, at least, where not all parts are read
FEWEST = 64  # images; with fewer the set's mean, which cosines are taken around, is a guess

Describe = Callable[[Sequence[Image.Image]], np.ndarray]  # images -> [N, D]


@dataclass(frozen=True)
class Spread:
    """What the descriptors of a set's images say."""

    within: float  # root mean square difference of two views of a caption, in x's unit
    between: float  # the same of two images of different captions
    cosine: float  # mean over captions of the mean cosine between its views, around the set's mean
    effective_views: float  # mean over captions
    views: float  # mean over captions: what the effective number could be at most

    def json(self) -> dict[str, float]:
        """Return the figures, rounded."""
        return {name: round(value, 4) for name, value in vars(self).items()}


def spread(x: np.ndarray, captions: Sequence[int]) -> Spread:
    """Return how far views lie apart; captions with one view are left out.

    The effective number of views is the Vendi score (Friedman and Dieng 2023, eq. 1) of a caption:
    exp(-sum_i l_i ln l_i) with l the eigenvalues of K / V, K the cosines between its V descriptors
    around the set's mean. Equal views give 1, views with nothing in common V.

    Args:
        x: descriptors [N, D].
        captions: the caption's id of each [N].

    Raises:
        ValueError: no caption has two views, or all images are of one caption.
    """
    x = np.asarray(x, np.float64)
    _, group, counts = np.unique(np.asarray(captions), return_inverse=True, return_counts=True)
    if counts.max(initial=0) < 2 or len(counts) < 2:
        raise ValueError("needs captions with two views, and two captions")
    centred = x - x.mean(0)
    within = pairs = 0.0
    cosines, effective, views = [], [], []
    for c in np.flatnonzero(counts > 1):
        v = centred[group == c]  # [V, D]
        within += _pair_distances(v)
        pairs += len(v) * (len(v) - 1)
        lengths = np.linalg.norm(v, axis=1, keepdims=True)
        unit = v / np.maximum(lengths, 1e-12)
        kernel = unit @ unit.T  # [V, V]
        np.fill_diagonal(kernel, 1.0)
        cosines.append((kernel.sum() - len(v)) / (len(v) * (len(v) - 1)))
        effective.append(_vendi(kernel))
        views.append(len(v))
    others = len(x) * (len(x) - 1) - sum(int(n) * (int(n) - 1) for n in counts)
    between = _pair_distances(centred) - within
    scale = x.shape[1]
    return Spread(
        within=float(np.sqrt(within / pairs / scale)),
        between=float(np.sqrt(max(between, 0.0) / others / scale)),
        cosine=float(np.mean(cosines)),
        effective_views=float(np.mean(effective)),
        views=float(np.mean(views)),
    )


def _pair_distances(x: np.ndarray) -> float:
    """Return the sum of |a - b|^2 over all ordered pairs of rows: 2 N sum |x|^2 - 2 |sum x|^2."""
    return float(2 * len(x) * (x**2).sum() - 2 * (x.sum(0) ** 2).sum())


def _vendi(kernel: np.ndarray) -> float:
    eigenvalues = np.linalg.eigvalsh(kernel / len(kernel))
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


def pixels(images: Sequence[Image.Image]) -> np.ndarray:
    """Return each image as SIDE x SIDE pixels, levels 0 to 255 [N, D]."""
    small = [i.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for i in images]
    return np.stack([np.asarray(i, np.float32).ravel() for i in small])


def measure(
    folder: Path, describe: Describe | None = None, looked_at: int = LOOKED_AT
) -> dict[str, Any]:
    """Return the diversity of a finished images folder.

    Keys: `looked_at` (images), `pixels` and, with `describe`, `features` (of `Spread`; missing
    where no caption has two views), `duplicates` (concept -> images whose perceptual hash an
    earlier image of the set has, the ten with most).

    Raises:
        DataError: no finished images folder, or a damaged part.
    """
    captions: list[int] = []
    rows: list[np.ndarray] = []
    features: list[np.ndarray] = []
    prints: set[int] = set()
    duplicates: Counter[str] = Counter()
    for batch in _batches(folder, looked_at):
        images = [image for _, _, image, _ in batch]
        rows.append(pixels(images))
        if describe:
            features.append(np.asarray(describe(images)))
        for caption, concept, _, fingerprint in batch:
            captions.append(caption)
            duplicates[concept] += fingerprint in prints
            prints.add(fingerprint)
    facts: dict[str, Any] = {"looked_at": len(captions)}
    for name, parts in (("pixels", rows), ("features", features)):
        if parts:
            try:
                facts[name] = spread(np.concatenate(parts), captions).json()
            except ValueError:  # one view each: nothing lies apart
                continue
    facts["duplicates"] = {c: n for c, n in duplicates.most_common(10) if n}
    return facts


def collapse(folder: Path) -> str:
    """Return what to say if the views of a caption are nearly one image, or ""."""
    facts = measure(folder, looked_at=512)
    figures = facts.get("pixels")
    if not figures or facts["looked_at"] < FEWEST or figures["cosine"] < COLLAPSED:
        return ""
    return (
        f"the views of a caption are nearly alike: {figures['views']:.3g} views are worth "
        f"{figures['effective_views']:.2f} (mean cosine {figures['cosine']:.2f}); lower "
        "render.engine.guidance, take more steps, or another model"
    )


def plot(folder: Path, out_png: Path, looked_at: int = LOOKED_AT) -> Path:
    """Draw how far apart views and captions lie, as two histograms; return the file.

    Raises:
        DataError: no finished images folder.
        ValueError: no caption has two views, or all images are of one caption.
    """
    from matplotlib.figure import Figure

    captions: list[int] = []
    rows: list[np.ndarray] = []
    for batch in _batches(folder, min(looked_at, 1024)):  # pairs grow with the square
        captions += [caption for caption, *_ in batch]
        rows.append(pixels([image for _, _, image, _ in batch]))
    x, ids = np.concatenate(rows), np.asarray(captions)
    figures = spread(x, captions)
    squares = (x**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0) / x.shape[1])
    above = np.triu(np.ones(distances.shape, bool), 1)
    same = ids[:, None] == ids
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    edges = np.linspace(0, float(distances.max()) or 1.0, 60).tolist()
    for mask, label in ((same & above, "views of a caption"), (~same & above, "of two captions")):
        axes.hist(distances[mask], edges, density=True, alpha=0.6, label=label)
    axes.set_xlabel(f"root mean square difference, levels of {SIDE} x {SIDE} pixels")
    axes.set_ylabel("density of pairs")
    axes.set_title(
        f"{folder.name}: {figures.views:.3g} views are worth {figures.effective_views:.2f}",
        fontsize=10,
    )
    axes.legend(frameon=False)
    with storage.atomic_file(out_png) as partial:
        figure.savefig(partial, dpi=130, format="png")
    return out_png


def backbone(spec: str) -> Describe:
    """Return a function that gives the cls features of images by a named backbone.

    Raises:
        UsageError, DataError: no such backbone.
    """
    import torch

    from synclr_cli.learning import backbone as backbones, runtime
    from synclr_cli.learning.transforms import EvalTransform

    opened = backbones.open_backbone(spec)
    device = runtime.pick_device()
    model = opened.model.to(device).eval()
    side = opened.image_size
    view = EvalTransform(side, side, opened.mean, opened.std, opened.interpolation)

    @torch.inference_mode()
    def describe(images: Sequence[Image.Image]) -> np.ndarray:
        rows = [
            backbones.cls_features(model, view(image.convert("RGB"))[None].to(device))
            for image in images
        ]
        return torch.cat(rows).float().cpu().numpy()  # [N, D]

    return describe


_Row = tuple[int, str, Image.Image, int]  # caption id, concept, image, perceptual hash


def _batches(folder: Path, looked_at: int) -> Iterator[list[_Row]]:
    """Yield images of row groups all over the set; those that do not decode are left out."""
    parts = open_dataset(folder, "images", ()).paths()
    parts = parts[:: max(1, len(parts) * _PER_PART // looked_at)]
    share = -(-looked_at // len(parts))  # of each part
    for path in parts:
        with artifacts.readable(path):
            file, _ = artifacts.open_parquet(path, "images")
            seen = 0
            for group in range(file.num_row_groups):
                columns = ["caption_id", "concept", "image"]
                table = file.read_row_group(group, columns).slice(0, share - seen)
                seen += len(table)
                if batch := list(_decoded(table.to_pylist())):
                    yield batch
                if seen >= share:
                    break


def _decoded(rows: list[dict[str, Any]]) -> Iterator[_Row]:
    for row in rows:
        data = (row["image"] or {}).get("bytes") or b""
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
            yield row["caption_id"], row["concept"], image, quality.fingerprint(data)
        except DECODE_ERRORS:
            continue
