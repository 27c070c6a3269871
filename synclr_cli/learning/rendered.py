"""Rendered images as a torch Dataset: `synclr_cli.load_images`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
from torch.utils.data import Dataset

from synclr_cli.data import artifacts, storage
from synclr_cli.data.manifest import Manifest
from synclr_cli.data.sources import ParquetRows

_COLUMNS = ("caption", "concept", "caption_id", "view")


class RenderedImages(Dataset[dict[str, Any]]):
    """The images of a folder, in the order of its parts; row groups are read when asked for."""

    def __init__(self, folder: Manifest, transform: Callable[[Any], Any] | None = None):
        self.header, self.transform = folder.header, transform
        self._images = ParquetRows(folder.paths(), "image")
        tables = []
        for path in folder.paths():
            with artifacts.readable(path):
                tables.append(storage.table(path, _COLUMNS).replace_schema_metadata(None))
        self._rows = pa.concat_tables(tables).combine_chunks()

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self._images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return image i and what is known of it; see `load_images`.

        Raises:
            DataError: it does not decode.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        image = self._images.image(i)
        known = {name: self._rows[name][i].as_py() for name in _COLUMNS}
        return {"image": self.transform(image) if self.transform else image, **known}
