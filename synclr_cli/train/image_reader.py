"""Encoded images and texts of an images/2 folder, read a row group at a time, and their decoding.

    part, row --row group--> bytes, text        bytes --decode--> [1, 3, H, W] uint8

A stored image is 256 px and a global crop of it at least 145 px wide on its way to 224, so a JPEG
is never decoded at a smaller scale.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from synclr_cli.data import images, storage
from synclr_cli.errors import DataError
from synclr_cli.train import libjpeg

CACHED_BYTES = 256 << 20  # of encoded images, per loader process
OPEN_FILES = 64  # per loader process
FOOTERS_KEPT = 4096  # parts whose row groups are known, per loader process
JPEG = b"\xff\xd8\xff"  # how its bytes begin


RowGroup = tuple[list[bytes | None], list[str]]  # encoded images, texts


class ImageReader:
    """Encoded images and texts by part and row, the row groups read last kept.

    What is asked for raises DataError if its row group cannot be read.
    """

    def __init__(self, path: Callable[[int], Path], text: str):
        """Take where a part lies, by its number, and the column of texts."""
        self._path, self._text = path, text
        self._groups: OrderedDict[tuple[int, int], RowGroup] = OrderedDict()
        self._bytes = 0
        self._starts: dict[int, NDArray[np.int64]] = {}
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._process = os.getpid()

    def image(self, part: int, row: int) -> bytes | None:
        """Return the encoded image of a row."""
        (images, _), place = self._group(part, row)
        return images[place]

    def text(self, part: int, row: int) -> str:
        """Return the text of a row."""
        (_, texts), place = self._group(part, row)
        return texts[place]

    def _group(self, part: int, row: int) -> tuple[RowGroup, int]:
        """Return the row group with a row, and the row's place in it."""
        if part not in self._starts:
            if len(self._starts) == FOOTERS_KEPT:
                self._starts.clear()
            with self._readable(part):
                meta = self._file(part).metadata
            rows = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
            self._starts[part] = np.cumsum([0, *rows])
        group = int(np.searchsorted(self._starts[part], row, side="right")) - 1
        row_group = self._groups.get((part, group))
        if row_group is None:
            row_group = self._read(part, group)
        else:
            self._groups.move_to_end((part, group))
        return row_group, row - int(self._starts[part][group])

    def _file(self, part: int) -> pq.ParquetFile:
        if self._process != os.getpid():  # forked: the handles are shared with another loader
            self._files.clear()
            self._process = os.getpid()
        if part not in self._files:
            self._files[part] = storage.parquet(self._path(part))
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(part)
        return self._files[part]

    def _read(self, part: int, group: int) -> RowGroup:
        with self._readable(part):
            table = self._file(part).read_row_group(
                group, columns=["image", self._text], use_threads=False
            )
        images = [r["bytes"] if r else None for r in table["image"].to_pylist()]
        self._groups[part, group] = images, [text or "" for text in table[self._text].to_pylist()]
        self._bytes += sum(len(p or b"") for p in images)
        while self._bytes > CACHED_BYTES and len(self._groups) > 1:
            _, (dropped, _) = self._groups.popitem(last=False)
            self._bytes -= sum(len(p or b"") for p in dropped)
        return self._groups[part, group]

    @contextmanager
    def _readable(self, part: int) -> Iterator[None]:
        """Turn what a broken disk or line or damaged bytes raise into one line."""
        try:
            yield
        except (pa.ArrowException, OSError) as e:
            raise DataError(
                f"cannot read the images of {self._path(part)} ({e})",
                do="if it is whole elsewhere, copy it again; the same command continues",
            ) from e


def decode(data: bytes | None, where: str) -> Tensor:
    """Return an image, [1, 3, H, W] uint8, its channels last in memory: so it is resized fastest.

    Raises:
        DataError: the bytes are no image, or libjpeg had to guess at a part of it.
    """
    if data and data.startswith(JPEG):
        if (size := images.jpeg_size(data)) is not None:
            images.require_size(size, where)
        try:
            with libjpeg.listening() as heard:
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                # A third faster than Pillow.
                image = decode_jpeg(encoded, ImageReadMode.RGB, apply_exif_orientation=True)
        except RuntimeError:  # a kind of JPEG that it cannot read, or a damaged one: Pillow says
            pass
        else:
            if heard.complaint:
                raise DataError(f"{where} does not decode as an image ({heard.complaint})")
            return image[None]
    pixels = np.asarray(images.decode(data, where))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]  # [1, 3, H, W]
