"""Where labelled images lie: files, Parquet rows, arrays, torchvision. Decoded when asked for.

Every source is a numbered row of images: `len(s)`, `s.where(i)` (for errors), `s.image(i)`, and
`s.mask(i)` and `s.size(i)` if it has masks. Only encoded bytes stay in memory, and a bounded lot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from synclr_cli.data import images
from synclr_cli.data.images import DECODE_ERRORS
from synclr_cli.errors import DataError

CACHE_BYTES = 512 * 2**20  # of Parquet row groups kept by each process


class Source(Protocol):
    """Numbered images."""

    def __len__(self) -> int: ...

    def where(self, i: int) -> str:
        """Return what to call image i in an error."""
        ...

    def image(self, i: int) -> Image.Image:
        """Return image i as 8-bit RGB."""
        ...


class Masked(Source, Protocol):
    """Numbered images with a class for each pixel."""

    def size(self, i: int) -> tuple[int, int]:
        """Return image i's width and height in pixels, without decoding it."""
        ...

    def mask(self, i: int) -> np.ndarray:
        """Return the class ids of image i's pixels, [H, W] int64."""
        ...


class Encoded(ABC):
    """A source whose images and masks are encoded files or cells."""

    def image(self, i: int) -> Image.Image:
        return images.decode(self._image(i), self.where(i))

    def size(self, i: int) -> tuple[int, int]:
        try:
            return images.open_image(self._image(i), self.where(i)).size
        except DECODE_ERRORS as e:
            raise DataError(f"{self.where(i)} does not decode as an image ({e})") from e

    def mask(self, i: int) -> np.ndarray:
        data = self._mask(i)
        if data is None:
            raise DataError(f"{self.where(i)} has no mask")
        try:
            image = images.open_image(data, f"the mask of {self.where(i)}")
            image.load()
        except DECODE_ERRORS as e:
            raise DataError(f"the mask of {self.where(i)} does not decode ({e})") from e
        ids = np.asarray(image)
        if ids.ndim != 2:
            raise DataError(
                f"the mask of {self.where(i)}",
                got=f"mode {image.mode}",
                expected="one channel of class ids (PNG mode P, L or I;16)",
            )
        return ids.astype(np.int64)

    @abstractmethod
    def where(self, i: int) -> str: ...

    @abstractmethod
    def _image(self, i: int) -> bytes | None: ...

    @abstractmethod
    def _mask(self, i: int) -> bytes | None: ...


class Files(Encoded):
    """Images as files, each with a mask file if there are masks."""

    def __init__(self, images: Sequence[Path], masks: Sequence[Path] | None = None):
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def where(self, i: int) -> str:
        return str(self.images[i])

    def _image(self, i: int) -> bytes:
        return _bytes(self.images[i])

    def _mask(self, i: int) -> bytes:
        assert self.masks is not None
        return _bytes(self.masks[i])


class ParquetRows(Encoded):
    """Images as cells of Parquet files; row groups are read when asked for, the latest kept."""

    def __init__(self, files: Sequence[Path], image: str, mask: str | None = None):
        self.files, self.image_column, self.mask_column = files, image, mask
        self._groups = [
            (file, group, rows)
            for file, opened in ((f, open_parquet(f)) for f in files)
            for group in range(opened.num_row_groups)
            if (rows := opened.metadata.row_group(group).num_rows)
        ]
        self._ends = np.cumsum([rows for *_, rows in self._groups], dtype=np.int64)
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": OrderedDict()}  # a loader process reads its own

    def where(self, i: int) -> str:
        k, row = self._locate(i)
        file, group, _ = self._groups[k]
        before = sum(rows for f, g, rows in self._groups if f == file and g < group)
        return f"{file} row {before + row}"

    def _image(self, i: int) -> bytes | None:
        return self._cell(self.image_column, i)

    def _mask(self, i: int) -> bytes | None:
        assert self.mask_column is not None
        return self._cell(self.mask_column, i)

    def _locate(self, i: int) -> tuple[int, int]:
        k = int(np.searchsorted(self._ends, i, side="right"))
        return k, i - int(self._ends[k] - self._groups[k][2])

    def _cell(self, column: str, i: int) -> bytes | None:
        k, row = self._locate(i)
        cell = self._group(k)[column][row].as_py()
        return cell["bytes"] if isinstance(cell, dict) else cell

    def _group(self, k: int) -> pa.Table:
        if k not in self._kept:
            file, group, _ = self._groups[k]
            columns = [self.image_column, *([self.mask_column] if self.mask_column else [])]
            try:
                table = pq.ParquetFile(file).read_row_group(group, columns, use_threads=False)
            except (pa.ArrowException, OSError) as e:
                raise DataError(f"cannot read {file} ({e})") from e
            self._kept[k] = table
            while len(self._kept) > 1 and sum(t.nbytes for t in self._kept.values()) > CACHE_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(k)
        return self._kept[k]


class Arrays:
    """Grey images as one array [n, H, W] uint8."""

    def __init__(self, name: str, images: np.ndarray):
        self.name, self.images = name, images

    def __len__(self) -> int:
        return len(self.images)

    def where(self, i: int) -> str:
        return f"{self.name} image {i}"

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(self.images[i]).convert("RGB")


class Torchvision:
    """A data set of torchvision."""

    def __init__(self, name: str, images: Any):
        self.name, self.images = name, images

    def __len__(self) -> int:
        return len(self.images)

    def where(self, i: int) -> str:
        return f"torchvision:{self.name} image {i}"

    def image(self, i: int) -> Image.Image:
        try:
            return self.images[i][0].convert("RGB")
        except DECODE_ERRORS as e:
            raise DataError(f"{self.where(i)} does not decode ({e})") from e


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file of anybody's.

    Raises:
        DataError: missing, truncated or not Parquet.
    """
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"{path} is not a Parquet file (or truncated) ({e})") from e


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"cannot read {path} ({e.strerror})") from e
