"""Finds the images, labels and splits in what a user names: folders, Parquet, torchvision.

    spec --find--> Found(splits{train, val, test: RawSplit(source, labels, groups)}, digest)

Nothing is decoded and nothing is split here; `labelled` does that.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq

from synclr_cli import console
from synclr_cli.data import columns, sources, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.data.manifest import MANIFEST, open_dataset
from synclr_cli.data.sources import Source
from synclr_cli.errors import DataError, EngineError, UsageError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "concept")
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
EXPECTED = "a folder, a .parquet file, torchvision:NAME or digits:"


@dataclass(frozen=True)
class RawSplit:
    """A split as it was found."""

    source: Source
    labels: np.ndarray  # [n] of int64 or str, or of lists of them: several classes an image
    names: Sequence[str] = ()  # of the int labels
    groups: np.ndarray | None = None  # [n] ids of images that belong together (a caption's views)


@dataclass(frozen=True)
class RawDataset:
    """A data set as it was found."""

    name: str
    splits: Mapping[str, RawSplit]  # train first
    digest: Callable[[], str]  # of the content; reads all of it
    header: Header | None = None
    mask_names: Sequence[str] = field(default=())


def find(spec: str, *, masks: bool) -> RawDataset:
    """Find the images a spec names.

    Raises:
        DataError: nothing there, or not in a known layout.
        EngineError: a download failed.
        UsageError: unknown scheme, or a data set that torchvision does not have.
    """
    scheme, colon, target = spec.partition(":")
    path = Path(spec)
    if colon and not path.exists():
        if masks and spec != "torchvision:VOCSegmentation":
            raise DataError(
                f"{spec} has no masks",
                expected="a folder or Parquet with masks, or torchvision:VOCSegmentation",
            )
        if scheme == "digits":
            return _digits()
        if scheme == "torchvision":
            return _torchvision(target)
        raise UsageError(f"unknown data {spec}", expected=EXPECTED, got=f"scheme {scheme}")
    if path.is_file():
        if path.suffix != ".parquet":
            raise DataError(
                f"data {spec}", got=f"a {path.suffix or 'nameless'} file", expected=EXPECTED
            )
        return _parquet(path, {"train": [path]}, masks)
    if not path.is_dir():
        raise DataError(f"no data {spec}", expected=EXPECTED, got="nothing there")
    if by_split := parquet_files(path):
        return _parquet(path, by_split, masks)
    if (path / "ImageSets").is_dir() and (path / "JPEGImages").is_dir():
        return _voc(path, path.resolve().name, masks)
    if (path / "images").is_dir() and any((path / n).is_dir() for n in ("annotations", "masks")):
        if not masks:
            raise DataError(
                f"{spec} holds masks, not classes", do="evaluate on it with synclr segment"
            )
        return _mask_folders(path)
    if masks:
        raise DataError(
            f"{spec} has no masks",
            expected="images/SPLIT and annotations/SPLIT folders, or Parquet with a mask column",
            got=", ".join(sorted(p.name for p in path.iterdir())[:5]) or "an empty folder",
        )
    return _class_folders(path)


# ------------------------------------------------------------------------------------ Parquet


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of each split of a folder; {} if it has none."""
    parts = sorted(folder.glob("part-*.parquet"))
    if parts:
        if (folder / MANIFEST).is_file() or _made_by_render(parts[0]):
            parts = open_dataset(folder, "images", ()).paths()
        return {"train": parts}
    splits: dict[str, list[Path]] = {}
    folders = {inside: _split_folders(inside) for inside in (folder, folder / "data")}
    for split in SPLIT_NAMES:
        for inside, split_folders in folders.items():
            files = [
                f
                for f in sorted(inside.glob("*.parquet"))
                if _split_of(re.split(r"[-_.]", f.name)[0]) == split
            ]
            if within := split_folders.get(split):
                files += parquet_files(within).get("train", []) or sorted(within.glob("*.parquet"))
            if files:
                splits[split] = files
                break
    if not splits and (files := sorted(folder.glob("*.parquet"))):
        splits["train"] = files
    return splits


def _made_by_render(path: Path) -> bool:
    metadata = sources.open_parquet(path).schema_arrow.metadata or {}
    return b"synclr" in metadata


def _parquet(path: Path, by_split: Mapping[str, Sequence[Path]], masks: bool) -> RawDataset:
    splits = {name: _parquet_split(files, masks) for name, files in by_split.items()}
    if (path / MANIFEST).is_file():
        rendered = open_dataset(path, "images", ())
        return RawDataset(path.resolve().name, splits, lambda: rendered.digest, rendered.header)
    every = [(f, f.name) for files in by_split.values() for f in files]
    return RawDataset(path.resolve().stem, splits, functools.partial(digest_files, every))


def _parquet_split(files: Sequence[Path], masks: bool) -> RawSplit:
    image = columns.image_column(files)
    schema = sources.open_parquet(files[0]).schema_arrow
    label = next((c for c in LABEL_COLUMNS if c in schema.names), None)
    if masks and "mask" not in schema.names:
        raise DataError(
            f"{files[0]} has no masks", got=f"columns {', '.join(schema.names)}", expected="mask"
        )
    if not masks and label is None:
        raise DataError(
            f"{files[0]} has no labels",
            got=f"columns {', '.join(schema.names)}",
            expected=" | ".join(LABEL_COLUMNS),
        )
    if masks:
        columns.require_images(files[0], schema.field("mask"))
    source = sources.ParquetRows(files, image, "mask" if masks else None)
    groups = columns.labels(files, "caption_id") if "caption_id" in schema.names else None
    if masks:
        return RawSplit(source, np.zeros(len(source), np.int64), groups=groups)
    assert label is not None
    names = columns.class_names(schema, label)
    return RawSplit(source, columns.labels(files, label), names, groups)


# ------------------------------------------------------------------------------------ folders


def _class_folders(root: Path) -> RawDataset:
    """Find SPLIT/CLASS/images, or CLASS/images without splits."""
    roots = _split_folders(root) or {"train": root}
    splits, every = {}, []
    names: set[str] = set()
    for split, folder in roots.items():
        images, labels = [], []
        classes = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        _require_no_splits(folder, classes)
        for inside in classes:
            files = list(image_files(inside))
            images += files
            labels += [inside.name] * len(files)
            names.add(inside.name)
        if not images:
            taken = f" (taken for the {split} split by its name)" if folder != root else ""
            raise DataError(
                f"{folder}{taken} holds no folders with images",
                expected="a folder for each class, with images inside",
                got=_few(sorted(p.name for p in folder.iterdir())) or "an empty folder",
            )
        splits[split] = RawSplit(sources.Files(images), np.array(labels))
        every += [(p, str(p.relative_to(root))) for p in images]
    if empty := sorted(names.difference(*(split.labels for split in splits.values()))):
        console.warn(f"{root}: folders without images are no classes: {_few(empty)}")
    return RawDataset(root.resolve().name, splits, functools.partial(digest_files, every))


def _mask_folders(root: Path) -> RawDataset:
    """Find images/SPLIT/x.jpg with annotations/SPLIT/x.png."""
    masks_root = root / ("annotations" if (root / "annotations").is_dir() else "masks")
    roots = _split_folders(root / "images") or {"train": root / "images"}
    splits, every = {}, []
    for split, folder in roots.items():
        images = list(image_files(folder))
        beside = masks_root / folder.relative_to(root / "images")
        masks = [beside / p.relative_to(folder).with_suffix(".png") for p in images]
        for image, mask in zip(images, masks, strict=True):
            if not mask.is_file():
                raise DataError(f"{image} has no mask", expected=mask, got="no file")
        splits[split] = RawSplit(sources.Files(images, masks), np.zeros(len(masks), np.int64))
        every += [(p, str(p.relative_to(root))) for p in (*images, *masks)]
    names = root / "classes.txt"
    listed = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
    listed = [n.strip() for n in listed if n.strip()]
    twice = sorted({n for n in listed if listed.count(n) > 1})
    if twice:
        raise DataError(f"{names} names {', '.join(twice)} more than once")
    digest = functools.partial(digest_files, every)
    return RawDataset(root.resolve().name, splits, digest, mask_names=listed)


def _voc(root: Path, name: str, masks: bool) -> RawDataset:
    """Find JPEGImages with Annotations (several classes an image) or SegmentationClass (masks)."""
    splits, every = {}, []
    for split in SPLIT_NAMES:
        listed = root / "ImageSets" / ("Segmentation" if masks else "Main") / f"{split}.txt"
        if not listed.is_file():
            continue
        names = listed.read_text(encoding="utf-8").split()
        images = [root / "JPEGImages" / f"{stem}.jpg" for stem in names]
        folder, ending = ("SegmentationClass", "png") if masks else ("Annotations", "xml")
        beside = [root / folder / f"{stem}.{ending}" for stem in names]
        labels = np.zeros(len(names), np.int64) if masks else np.empty(len(names), object)
        if not masks:
            labels[:] = [_voc_classes(file) for file in beside]
        source = sources.Files(images, beside if masks else None)
        splits[split] = RawSplit(source, labels, () if masks else VOC_CLASSES)
        every += [(file, str(file.relative_to(root))) for file in (*images, *beside, listed)]
    mask_names = ("background", *VOC_CLASSES) if masks else ()
    digest = functools.partial(digest_files, every)
    return RawDataset(name, splits, digest, mask_names=mask_names)


def _voc_classes(annotation: Path) -> list[int]:
    """Return the classes of a VOC image; an object that is marked difficult does not count.

    Raises:
        DataError: the annotation is not there, not XML, or names a class that VOC has not.
    """
    try:
        objects = {
            str(element.findtext("name"))
            for element in ElementTree.parse(annotation).getroot().iter("object")
            if element.findtext("difficult", "0").strip() != "1"
        }
        return sorted(VOC_CLASSES.index(name) for name in objects)
    except (OSError, ElementTree.ParseError, ValueError) as e:
        raise DataError(f"cannot read the classes in {annotation} ({e})") from e


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folders whose names say which split they are, train first."""
    folders = [p for p in sorted(root.iterdir()) if p.is_dir()] if root.is_dir() else []
    return {
        split: folder
        for split in SPLIT_NAMES
        for folder in folders
        if _split_of(folder.name) == split
    }


def _split_of(name: str) -> str | None:
    """Return the split that a folder or file is by its name, None if it is none."""
    word = name.lower().removesuffix("_set")
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def _require_no_splits(folder: Path, classes: Sequence[Path]) -> None:
    """Refuse folders that hold the same folders each: splits whose names nobody knows.

    Raises:
        DataError: names them.
    """
    inner = _folders_in(classes[0]) if len(classes) > 1 else set()
    if inner and all(_folders_in(subfolder) == inner for subfolder in classes):
        raise DataError(
            f"{folder} holds {', '.join(c.name for c in classes)}, each with the folders"
            f" {', '.join(sorted(inner)[:5])}",
            expected="splits named train, val and test, or a folder for each class",
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _folders_in(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir()}


def image_files(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder, by name; what is hidden is none."""
    paths = []
    for where, folders, files in os.walk(folder):  # tells files from folders without asking twice
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(where, name) for name in files if not name.startswith(".")]
    yield from (path for path in sorted(paths) if path.suffix.lower() in IMAGES)


def digest_files(files: Sequence[tuple[Path, str]]) -> str:
    """Return the digest of files' names and bytes; their order does not count."""
    total = hashlib.sha256()
    for path, name in sorted(files, key=lambda f: f[1]):
        total.update(f"{name}\0{storage.digest(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


# ------------------------------------------------------------------------------------- packages


def _digits() -> RawDataset:
    """Return UCI's 1,797 handwritten digits (tools/digits.py), 8x8 grey, without splits."""
    table = pq.read_table(Path(__file__).with_name("digits.parquet"))
    levels = np.frombuffer(b"".join(table["levels"].to_pylist()), np.uint8)  # [1797 * 64], 0 to 16
    images = (levels.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)  # [1797, 8, 8]
    split = RawSplit(
        sources.Arrays("digits:", images),
        table["label"].to_numpy().astype(np.int64),
        [str(name) for name in range(10)],
    )
    total = hashlib.sha256(images.tobytes() + split.labels.tobytes()).hexdigest()
    return RawDataset("digits", {"train": split}, lambda: f"sha256:{total}")


def _torchvision(name: str) -> RawDataset:
    """Download (once) and open a data set of torchvision, all the splits it has."""
    import torchvision.datasets

    data_set = getattr(torchvision.datasets, name, None)
    if name.startswith("_") or not inspect.isclass(data_set) or name == "VisionDataset":
        raise UsageError(f"torchvision has no data set {name}", do="names are case-sensitive")
    parameters = inspect.signature(data_set).parameters
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = cache / "synclr" / "torchvision" / name
    arguments = {"root": str(root), "download": True, "year": "2007"}  # VOC's year of Table 9
    arguments = {key: value for key, value in arguments.items() if key in parameters}
    splits: dict[str, RawSplit] = {}
    for split, choice in _torchvision_splits(parameters):
        console.note(f"opening torchvision:{name}, split {split} (downloaded if it is not there)")
        try:
            opened = data_set(**arguments, **choice)
        except ValueError:  # torchvision's word for a split this data set does not have
            continue
        except (OSError, RuntimeError, TypeError) as e:
            raise EngineError(
                f"cannot get torchvision:{name} ({e})", do="see torchvision's page"
            ) from e
        if not name.startswith("VOC"):
            splits.setdefault(split, _torchvision_split(name, opened))
    if name.startswith("VOC"):  # its files are there now
        return _voc(root / "VOCdevkit" / "VOC2007", name, name == "VOCSegmentation")
    return RawDataset(name, splits, lambda: storage.digest(root))


def _torchvision_splits(parameters: Mapping[str, object]) -> list[tuple[str, dict[str, object]]]:
    if "train" in parameters:
        return [("train", {"train": True}), ("test", {"train": False})]
    if "image_set" in parameters:
        return [(split, {"image_set": split}) for split in SPLIT_NAMES]
    if "split" in parameters:
        names = {**SPLIT_NAMES, "train": ("train", "trainval")}
        return [(split, {"split": n}) for split, every in names.items() for n in every]
    return [("train", {})]


def _torchvision_split(name: str, opened: Any) -> RawSplit:
    attributes = (getattr(opened, key, None) for key in ("targets", "labels", "_labels"))
    labels = next((value for value in attributes if value is not None), None)
    if labels is None:
        labels = [opened[i][1] for i in range(len(opened))]
    numbers = np.array([int(value) for value in labels], np.int64)
    names = getattr(opened, "classes", None) or ()
    return RawSplit(sources.Torchvision(name, opened), numbers, [str(n) for n in names])
