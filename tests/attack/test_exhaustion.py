"""Small files that ask for much: refused in one line, in little memory."""

from __future__ import annotations

import json
import os
import random
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import bad_files
import bad_inputs
import good_files
import numpy as np
import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

MOST_MEGABYTES = 700  # beyond the 0.6 GB of a process that has imported torch
Line = list[object]


def _texts(path: Path, column: str, **more: object) -> Path:
    """Write a Parquet file of some kB that holds 400 MB of text."""
    text = "a fox " * 16_667  # 100 kB
    indices = pa.array(np.zeros(4000, np.int32))
    values = pa.DictionaryArray.from_arrays(indices, [text]).cast(pa.string())
    rows = {column: values, **{name: [value] * 4000 for name, value in more.items()}}
    pq.write_table(pa.table(rows), path, compression="zstd")
    assert path.stat().st_size < 200_000
    return path


def _strip(folder: Path, size: tuple[int, int]) -> Path:
    image = good_files.encoded(Image.new("L", size))
    images = [{"bytes": image, "path": None} for _ in range(24)]
    return good_files.labelled(folder / "d.parquet", image=images)


def _claimed_jpeg() -> bytes:
    data = bytearray(good_files.encoded(Image.new("RGB", (16, 16)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"  # 65,500 x 65,500
    return bytes(data)


def _jpegs(folder: Path, good: Mapping[str, Path]) -> Path:
    """Copy the images, their bytes a JPEG that claims billions of pixels."""
    tar = folder / "d.tar"
    with tarfile.open(tar, "w") as out:
        import io

        for i in range(8):
            for name, data in ((f"{i}.jpg", _claimed_jpeg()), (f"{i}.txt", b"a fox")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    return tar


def _tune(command: str, g: Mapping[str, Path], data: Path) -> Line:
    return [*bad_inputs.tuning(command, g["backbone"], data)]


def _sparse(folder: Path) -> Path:
    path = folder / "d.tar"
    info = tarfile.TarInfo("a.png")
    info.size = 20 << 30
    path.write_bytes(info.tobuf())
    os.truncate(path, (20 << 30) + 4096)
    return path


def _deep_header(folder: Path, good: Mapping[str, Path]) -> Path:
    from synclr_cli.data import artifacts

    source = good["backbone"] / "backbone.safetensors"
    header = json.loads(artifacts.tensors_header(source).json())
    header["facts"]["arch_arguments"]["depth"] = 10**6
    return good_files.with_header(source, folder / "b.safetensors", json.dumps(header))


def _claimed(folder: Path) -> Path:
    path = folder / "b.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    return path


def _large_id(folder: Path) -> Path:
    masks = [{"bytes": good_files.mask(i), "path": None} for i in range(24)]
    masks[0]["bytes"] = good_files.encoded(Image.new("I;16", (good_files.SIZE,) * 2, 60_000))
    return good_files.labelled(folder / "d.parquet", label=None, mask=masks)


def _claimed_masks(folder: Path) -> Path:
    masks = [{"bytes": bad_files.claimed_png(60_000, 60_000), "path": None}] * 24
    return good_files.labelled(folder / "d.parquet", label=None, mask=masks)


CASES: dict[str, Callable[[Path, Mapping[str, Path]], Line]] = {
    "a strip of 60,000 x 1": lambda f, g: _tune("linear-probe", g, _strip(f, (60_000, 1))),
    "an image of 12,000 x 12,000": lambda f, g: _tune("finetune", g, _strip(f, (12_000, 12_000))),
    "a mask with id 60,000": lambda f, g: _tune("segment", g, _large_id(f)),
    "masks that claim 60,000 x 60,000": lambda f, g: _tune("segment", g, _claimed_masks(f)),
    "labels of 400 MB": lambda f, g: _tune("linear-probe", g, _texts(
        f / "d.parquet", "label", image={"bytes": good_files.png(1), "path": None})),
    "captions of 400 MB": lambda f, g: ["render", _texts(f / "c.parquet", "caption"), "--engine",
                                        "procedural:"],
    "words of 400 MB": lambda f, g: ["captions", "--concepts", _texts(f / "w.parquet", "concept"),
                                     "--engine", "template:"],
    "captions of 400 MB to import": lambda f, g: ["import", _texts(
        f / "c.parquet", "caption", image={"bytes": good_files.png(1), "path": None})],
    "a sparse tar of 20 GB": lambda f, g: ["import", _sparse(f)],
    "a header of a million blocks": lambda f, g: _tune("linear-probe", {
        **g, "backbone": _deep_header(f, g)}, g["labelled"]),
    "a safetensors header of 2^60 bytes": lambda f, g: ["inspect", _claimed(f)],
    "a text file of one line of 400 MB": lambda f, g: ["render", _long_line(f), "--engine",
                                                       "procedural:"],
}  # fmt: skip


def _long_line(folder: Path) -> Path:
    path = folder / "c.txt"
    with open(path, "wb") as out:
        for _ in range(400):
            out.write(b"a fox and " * 100_000)
    return path


@pytest.mark.parametrize("name", CASES)
def test_little_files_that_ask_for_much_are_refused(
    name: str, good: Mapping[str, Path], tmp_path: Path
) -> None:
    arguments = CASES[name](tmp_path, good)
    if arguments[0] != "inspect":
        arguments += ["--out", tmp_path / "out"]
    outcome = processes.start(arguments).wait()
    assert outcome.code in (2, 3, 4), (outcome.code, outcome.err[-600:])
    assert len(outcome.error_line) < bad_inputs.LONGEST_LINE
    assert outcome.megabytes < MOST_MEGABYTES


def test_a_jpeg_that_claims_billions_of_pixels_is_passed_over_by_train(
    good: Mapping[str, Path], tmp_path: Path
) -> None:
    from synclr_cli.errors import DataError
    from synclr_cli.train import image_reader

    with pytest.raises(DataError, match="too large to decode: got 65500x65500"):
        image_reader.decode(_claimed_jpeg(), "here")


def test_the_size_of_a_jpeg_is_read_from_its_header() -> None:
    from synclr_cli.data import images

    rng = random.Random(1)
    for progressive in (False, True):
        width, height = rng.randrange(1, 999), rng.randrange(1, 999)
        import io

        sink = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (width, height)).save(
            sink, "JPEG", progressive=progressive, exif=exif, comment=b"\xff\xc0" * 50
        )
        assert images.jpeg_size(sink.getvalue()) == (width, height)
    assert images.jpeg_size(b"\xff\xd8\xff") is None
    assert images.jpeg_size(b"\xff\xd8" + b"\xff" * 99) is None
