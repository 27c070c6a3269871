"""The Python API: what `from synclr_cli import ...` gives. Heavy packages come with a call.

load_backbone("runs/tiny") -> model, transform, header
load_captions("captions")  -> pyarrow.Table
load_images("images")      -> torch Dataset of dicts

model, transform, header = load_backbone("runs/tiny")
x = model(transform(Image.open("heron.jpg").convert("RGB"))[None])  # [1, D]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa
    from timm.models import VisionTransformer
    from torch.utils.data import Dataset

    from synclr_cli.data.artifacts import Header
    from synclr_cli.learning.transforms import EvalTransform


class LoadedBackbone(NamedTuple):
    """A backbone, ready to use."""

    model: VisionTransformer  # images [B, 3, S, S] -> cls features [B, D]; in evaluation mode
    transform: EvalTransform  # an RGB PIL image -> [3, S, S] float32, normalised
    header: Header | None  # how it was made; None for weights that synclr did not make


def load_backbone(spec: str | Path, *, image_size: int = 0, seed: int = 0) -> LoadedBackbone:
    """Open a backbone by its name, and say how to show it an image.

    Args:
        spec: run folder | file.safetensors | file.pth | timm:NAME | hf://USER/NAME | random:ARCH.
        image_size: pixels to build it for, its position table resized; 0 for its own.
        seed: of the weights of random:ARCH.

    Raises:
        UsageError: no such scheme or architecture.
        DataError: the file is missing, damaged, or no ViT's.
        EngineError: weights cannot be fetched.
    """
    from synclr_cli.learning import backbone, features

    opened = backbone.open_backbone(str(spec), image_size=image_size, seed=seed)
    return LoadedBackbone(opened.model.eval(), features.transform(opened), opened.header)


def load_captions(place: str | Path) -> pa.Table:
    """Return the captions of a finished folder, a row for each.

    A pyarrow Table, since that is what all of pandas (`.to_pandas()`), DuckDB, polars and Hugging
    Face's datasets take without a copy.

    Args:
        place: folder, or a URI such as s3://bucket/captions or hf://datasets/USER/NAME.

    Raises:
        DataError: no captions there, not finished, or damaged.
    """
    import pyarrow as pa

    from synclr_cli.data import artifacts, manifest, storage

    folder = manifest.open_dataset(storage.place(place), "captions", ())
    tables = []
    for path in folder.paths():
        with artifacts.readable(path):
            tables.append(storage.table(path).replace_schema_metadata(None))
    return pa.concat_tables(tables)


def load_images(
    place: str | Path, transform: Callable[[Any], Any] | None = None
) -> Dataset[dict[str, Any]]:
    """Return the images of a finished folder as a torch Dataset.

    An item is a dict: image (what `transform` makes of the RGB PIL image), caption, concept,
    caption_id and view. For a Hugging Face `Dataset` there is
    `datasets.load_dataset("parquet", data_files="images/part-*.parquet")`; the columns tell it that
    they are images.

    Args:
        place: folder of images of `synclr render` or `synclr import`.
        transform: such as `load_backbone`'s.

    Raises:
        DataError: no images there, not finished, or damaged.
    """
    from synclr_cli.data import manifest, storage
    from synclr_cli.learning.rendered import RenderedImages

    return RenderedImages(manifest.open_dataset(storage.place(place), "images", ()), transform)
