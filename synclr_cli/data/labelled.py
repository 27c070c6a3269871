"""Labelled images, wherever they lie, as three splits that never mix.

    spec --open_data--> Labelled(classes, digest, splits{train, val, test})
    spec: DIR/{train,val,test}/CLASS/*.jpg | DIR/CLASS/*.jpg           class folders
          FILE.parquet | DIR of Parquet files named by split           Hugging Face layout
          DIR made by synclr render                                    the concept is the label
          DIR/images/SPLIT/x.jpg + DIR/annotations/SPLIT/x.png         masks, the ADE20K layout
          DIR with JPEGImages, ImageSets, ...                          VOC: several labels, or masks
          torchvision:NAME | digits:                                   downloaded | in the package

Images are decoded when asked for. A split the data lacks is held out of train: class by class,
drawn from the seed, all views of one caption on one side. `facts` says which ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from PIL import Image

from synclr_cli import rng
from synclr_cli.data import layouts
from synclr_cli.data.artifacts import Header
from synclr_cli.data.layouts import RawDataset, RawSplit
from synclr_cli.data.sources import Masked, Source
from synclr_cli.errors import DataError

TRAIN, VAL, TEST = "train", "val", "test"
MOST_MASK_CLASSES = 4096  # a 16-bit mask with one id of 60,000 would make a head of as many classes


@dataclass(frozen=True)
class Split:
    """Images of one split: a selection of a source's rows, with labels or masks."""

    source: Source
    rows: np.ndarray  # [n] of the source
    labels: np.ndarray  # [n] int64 class ids, or [n, K] of 0 and 1; zeros if there are masks
    zero_becomes: int | None = None  # in masks: the id 0 turns into; the others move down by one

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, i: int) -> str:
        """Return what to call image i in an error."""
        return self.source.where(int(self.rows[i]))

    def image(self, i: int) -> Image.Image:
        """Return image i as 8-bit RGB.

        Raises:
            DataError: it does not decode; names the file or row.
        """
        return self.source.image(int(self.rows[i]))

    def mask(self, i: int) -> np.ndarray:
        """Return the class ids of image i's pixels, [H, W] int64, as large as the image.

        Raises:
            DataError: it does not decode, or its size is not the image's.
        """
        row = int(self.rows[i])
        source = cast(Masked, self.source)  # only such sets are asked for masks
        ids = source.mask(row)
        width, height = source.size(row)
        if ids.shape != (height, width):
            raise DataError(
                f"the mask of {self.where(i)}",
                got=f"{ids.shape[1]}x{ids.shape[0]} pixels",
                expected=f"the image's {width}x{height}",
            )
        if self.zero_becomes is not None:
            unlabelled = (ids == 0) | (ids == self.zero_becomes)
            ids = np.where(unlabelled, self.zero_becomes, ids - 1)
        return ids

    def take(self, chosen: np.ndarray) -> Split:
        """Return the split reduced to the images at positions `chosen`."""
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen])


@dataclass(frozen=True)
class LabelledDataset:
    """A data set, ready for an evaluation."""

    spec: str  # as the user named it
    name: str
    digest: str  # of the content
    classes: Sequence[str]
    splits: Mapping[str, Split]  # train, val, test
    facts: Mapping[str, str]  # split -> where it came from
    header: Header | None = None  # of rendered images

    @property
    def several(self) -> bool:
        """Return whether an image may have several classes, or none."""
        return self.splits[TRAIN].labels.ndim == 2


def open_data(
    spec: str,
    *,
    masks: bool = False,
    several: bool = False,
    validation_share: float,
    seed: int,
    ignore_index: int = 255,
    reduce_zero_label: bool = False,
) -> LabelledDataset:
    """Open labelled images.

    Args:
        spec: see the module's docstring.
        masks: the labels are masks of class ids.
        several: an image may have several classes; its labels may be lists.
        validation_share: of train, for a split the data does not bring.
        seed: of the draw of such splits.
        ignore_index: the id of unlabelled pixels.
        reduce_zero_label: in masks 0 is unlabelled too and the classes begin at 1, as in ADE20K.

    Raises:
        DataError: nothing there, no split of it has images, one class only, a class that train
            lacks, a label or id out of range, masks and images of different size.
        EngineError: a download failed.
    """
    raw_data = layouts.find(spec, masks=masks)
    raw = {name: split for name, split in raw_data.splits.items() if _has_labels(split)}
    for name, split in raw.items():
        if len(split.source) == 0:
            raise DataError(f"{spec}: its {name} split is empty")
    if TRAIN not in raw:
        raise DataError(f"{spec} has no train split", got=", ".join(raw) or "nothing labelled")

    zero = ignore_index if reduce_zero_label else None
    if masks:
        classes = _mask_classes(raw_data, raw, ignore_index, zero)
        labels = {name: np.zeros(len(split.source), np.int64) for name, split in raw.items()}
    elif any(split.labels.dtype.kind == "O" for split in raw.values()):
        if not several:
            raise DataError(
                f"{spec} has lists of labels", do="use it with linear-probe's metric mean_ap"
            )
        classes, labels = _flag_classes(raw)
    else:
        classes, labels = _number_classes(raw_data, raw)
    whole = {
        name: Split(split.source, np.arange(len(split.source)), labels[name].astype(np.int64), zero)
        for name, split in raw.items()
    }
    splits, facts = _complete(spec, whole, raw[TRAIN].groups, validation_share, seed)
    if not masks:
        _check_labels(spec, splits, classes)
    return LabelledDataset(
        spec=spec,
        name=raw_data.name,
        digest=raw_data.digest(),
        classes=classes,
        splits=splits,
        facts=facts,
        header=raw_data.header,
    )


def hold_out(
    labels: np.ndarray, groups: np.ndarray | None, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a share of each class, at least one and never all of it; whole groups only.

    Args:
        labels: [n] class ids, or [n, K] flags.
        groups: [n] ids of what must stay together; None: every image alone.
        share: of the groups of a class, 0 to 1.

    Returns:
        Positions kept and positions held out, ascending. A class of one group is kept.
    """
    n = len(labels)
    if labels.ndim == 2:  # several classes an image: drawn from all alike
        labels = np.zeros(n, np.int64)
    every, first, member = np.unique(
        np.arange(n) if groups is None else groups, return_index=True, return_inverse=True
    )
    held = np.zeros(len(every), bool)
    of_class = labels[first]  # [groups]
    for k in np.unique(of_class):
        inside = np.flatnonzero(of_class == k)
        count = min(max(1, round(share * len(inside))), len(inside) - 1)
        chosen = rng.generator(seed, int(k)).permutation(len(inside))[:count]
        held[inside[chosen]] = True
    out = held[member]
    return np.flatnonzero(~out), np.flatnonzero(out)


def _complete(
    spec: str, whole: dict[str, Split], groups: np.ndarray | None, share: float, seed: int
) -> tuple[dict[str, Split], dict[str, str]]:
    """Add the splits that are missing, out of train."""
    splits, facts = dict(whole), dict.fromkeys(whole, "the data's own")
    if TEST not in splits and VAL in splits:
        # A data set with one public evaluation split is graded on it; selection needs another.
        splits[TEST], facts[TEST] = splits.pop(VAL), "the data's own validation split"
    for name in (TEST, VAL):
        if name in splits:
            continue
        kept, held = hold_out(splits[TRAIN].labels, groups, share, seed)
        if not len(held):
            raise DataError(
                f"{spec}: cannot hold out a {name} split, every class has one image or caption",
                do="bring more of each class, or folders train, val and test",
            )
        splits[name], splits[TRAIN] = splits[TRAIN].take(held), splits[TRAIN].take(kept)
        groups = None if groups is None else groups[kept]
        facts[name] = f"held out: {share:g} of train, by class, seed {seed}"
    return {name: splits[name] for name in (TRAIN, VAL, TEST)}, facts


def _has_labels(split: RawSplit) -> bool:
    """Return false for a public test split whose labels are kept secret: all -1."""
    labels = split.labels
    secret = labels is not None and labels.dtype.kind == "i" and len(labels) > 0
    return not (secret and bool((labels < 0).all()))


def _number_classes(
    raw_data: RawDataset, raw: Mapping[str, RawSplit]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the class names and each split's labels as numbers of them."""
    names = next((split.names for split in raw.values() if split.names), None)
    for name, split in raw.items():
        if split.names and split.names != names:
            raise DataError(
                f"{raw_data.name}: the {name} split names other classes than another split"
            )
        if names and split.labels.dtype.kind == "i":
            wrong = np.flatnonzero((split.labels < 0) | (split.labels >= len(names)))
            if len(wrong):
                raise DataError(
                    f"the label of {split.source.where(int(wrong[0]))}",
                    got=int(split.labels[wrong[0]]),
                    expected=f"0 to {len(names) - 1}",
                )
    if names and all(split.labels.dtype.kind == "i" for split in raw.values()):
        return list(names), {name: split.labels for name, split in raw.items()}
    every = np.unique(np.concatenate([split.labels for split in raw.values()]))
    numbered = {name: np.searchsorted(every, split.labels) for name, split in raw.items()}
    return [str(value) for value in every.tolist()], numbered


def _flag_classes(raw: Mapping[str, RawSplit]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the class names and each split's lists of labels as 0 and 1, [n, K]."""
    names = next((list(split.names) for split in raw.values() if split.names), None)
    lists = {name: [several or [] for several in split.labels] for name, split in raw.items()}
    if names is None:
        every = sorted(
            {label for split in lists.values() for several in split for label in several}
        )
        names = [str(label) for label in every]
        number = {label: k for k, label in enumerate(every)}
    else:
        number = {k: k for k in range(len(names))}
    flags = {}
    for name, split in lists.items():
        flags[name] = np.zeros((len(split), len(names)), np.int64)
        for i, several in enumerate(split):
            for label in several:
                if label not in number:
                    raise DataError(
                        f"the label of {raw[name].source.where(i)}",
                        got=label,
                        expected=f"0 to {len(names) - 1}",
                    )
                flags[name][i, number[label]] = 1
    return names, flags


def _check_labels(spec: str, splits: Mapping[str, Split], classes: Sequence[str]) -> None:
    if splits[TRAIN].labels.ndim == 2:
        lacking = np.flatnonzero(splits[TRAIN].labels.sum(0) == 0)
        if len(lacking):
            raise DataError(f"{spec}: no train image has class {classes[lacking[0]]}")
        return
    known = set(np.unique(splits[TRAIN].labels).tolist())
    if len(known) < 2:
        (only,) = known
        raise DataError(
            f"{spec}: the train split has one class, {classes[only]}", do="an evaluation needs two"
        )
    for name in (VAL, TEST):
        unseen = sorted(set(np.unique(splits[name].labels).tolist()) - known)
        if unseen:
            raise DataError(
                f"{spec}: no train image has class {classes[unseen[0]]} of the {name} split"
            )


def _mask_classes(
    raw_data: RawDataset, raw: Mapping[str, RawSplit], ignore_index: int, zero: int | None
) -> list[str]:
    """Return the class names; read every mask once, so that no training stops at a bad one."""
    seen: set[int] = set()
    for name in sorted(raw, key=lambda n: n != TRAIN):  # train says how many there are
        split = raw[name]
        checked = Split(split.source, np.arange(len(split.source)), np.empty(0), zero)
        of_split: set[int] = set()
        for i in range(len(checked)):
            ids = np.unique(checked.mask(i))
            ids = ids[ids != ignore_index]
            top, low = int(ids.max(initial=-1)), int(ids.min(initial=0))
            limit = len(raw_data.mask_names) if raw_data.mask_names else MOST_MASK_CLASSES
            if name != TRAIN and not raw_data.mask_names:
                limit = max(seen, default=-1) + 1
            if low < 0 or top >= limit:
                raise DataError(
                    f"the mask of {checked.where(i)}",
                    got=f"class id {low if low < 0 else top}",
                    expected=f"0 to {limit - 1}, or {ignore_index} for unlabelled",
                )
            of_split |= set(ids.tolist())
        if not of_split:
            raise DataError(
                f"{raw_data.name}: every pixel of the {name} split's masks is {ignore_index},"
                " unlabelled",
                do="--set segment.ignore_index names the id that is unlabelled",
            )
        seen |= of_split
    if len(seen) < 2:
        raise DataError(
            f"{raw_data.name}: its masks hold fewer than two classes",
            got=f"id {seen.pop()} alone",
            do=f"id {ignore_index} is unlabelled; --set segment.ignore_index names another",
        )
    return list(raw_data.mask_names or (str(i) for i in range(max(seen) + 1)))
