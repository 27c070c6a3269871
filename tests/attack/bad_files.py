"""Hostile but fair: files that a command must refuse in one line, by what they are taken for.

    bad(role, kind)(folder, good, rng) --> what to name on the command line

`good` are the whole files of `good_files`; nothing here writes to them.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import good_files
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from synclr_cli.data import artifacts

Make = Callable[[Path, Mapping[str, Path], random.Random], Path | str]


@dataclass(frozen=True)
class Bad:
    """A way to make something bad."""

    role: str  # what a command takes it for
    kind: str
    make: Make
    may_pass: bool = False  # it may be harmless: damage in bytes or keys that nobody reads


BAD: list[Bad] = []


def bad(role: str, kind: str, *, may_pass: bool = False) -> Callable[[Make], Make]:
    """Add a function that makes something bad."""

    def add(make: Make) -> Make:
        BAD.extend(Bad(one, kind, make, may_pass) for one in role.split())
        return make

    return add


# --------------------------------------------------------------------- damage to anything

_GOOD = {  # role -> the good file or folder that is damaged
    "words": "words", "captions": "captions", "images": "images", "backbone": "backbone",
    "labelled": "labelled", "masks": "masks", "report": "report", "source": "labelled",
    "pictures": "labelled", "run": "run",
}  # fmt: skip
_MANY = " ".join(_GOOD)


def _copy(folder: Path, good: Mapping[str, Path], role: str) -> Path:
    source, target = good[_GOOD[role]], folder / good[_GOOD[role]].name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _damage(kind: str, change: Callable[[bytes, random.Random], bytes], may_pass: bool) -> None:
    for role in _GOOD:

        def make(
            folder: Path, good: Mapping[str, Path], rng: random.Random, role: str = role
        ) -> Path:
            path = _copy(folder, good, role)
            file = rng.choice(_files(path))
            file.write_bytes(change(file.read_bytes(), rng))
            return path

        BAD.append(Bad(role, kind, make, may_pass))


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 8, 64])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


_damage("empty", lambda data, rng: b"", True)
_damage("truncated", lambda data, rng: data[: rng.randrange(len(data) + 1)], True)
_damage("flipped bits", _flipped, True)
_damage("zeros", lambda data, rng: bytes(len(data)), True)
_damage("noise", lambda data, rng: rng.randbytes(min(len(data), 4096)), True)
_damage("another's head", lambda data, rng: b"PAR1" + data[4:], True)


@bad(_MANY, "missing")
def _missing(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    return folder / "nothing-here"


@bad(_MANY, "over-long name")
def _long_name(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    return folder / ("x" * 300)


@bad("captions images run backbone", "NUL in a piped name")
def _nul(folder: Path, good: Mapping[str, Path], rng: random.Random) -> str:
    return f"{folder}/a\0b"


@bad(_MANY, "newline and escape in the name")
def _escape(folder: Path, good: Mapping[str, Path], rng: random.Random) -> str:
    return f"{folder}/a\n\x1b[31mred\x1b[0m\u202etxt.exe"


@bad("captions images source", "dead host")
def _dead(folder: Path, good: Mapping[str, Path], rng: random.Random) -> str:
    return rng.choice(["ftp://127.0.0.1:1/x", "http://127.0.0.1:1/x.parquet", "nosuch://x/y"])


@bad("captions images labelled masks source pictures run report", "empty folder")
def _empty_folder(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@bad(_MANY, "link to itself")
def _loop(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


@bad("words captions labelled backbone report source", "device")
def _device(folder: Path, good: Mapping[str, Path], rng: random.Random) -> str:
    return rng.choice(["/dev/null", "/proc/self/environ"])


# ------------------------------------------------------------------ JSON of other shapes

ODD: tuple[Any, ...] = (
    None, [], {}, "", "x", 0, -1, 1e308, 2**70, True, ["a"], [{}], [[]], [None], {"a": None},
    float("nan"), "\x1b]0;x\x07", "x" * 5000,
)  # fmt: skip


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list) else ()
    )  # fmt: skip
    for key, child in inner:
        yield (*at, key)
        yield from _paths(child, (*at, key))


def odd_json(value: Any, rng: random.Random) -> Any:
    """Return JSON with one value of it replaced by one of another kind, or dropped."""
    changed = json.loads(json.dumps(value))
    path = rng.choice(list(_paths(changed)))
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    if rng.random() < 0.2:
        del parent[path[-1]]
    else:
        parent[path[-1]] = rng.choice(ODD)
    return changed


DEEP = "[" * 3000 + "]" * 3000
LONG_NUMBER = "9" * 5000


def _for_role(kind: str, change: Callable[[Path, random.Random], None]) -> None:
    for role in ("report", "run", "captions", "images", "backbone"):

        def make(
            folder: Path, good: Mapping[str, Path], rng: random.Random, role: str = role
        ) -> Path:
            path = _copy(folder, good, role)
            files = [f for f in _files(path) if f.suffix in (".json", ".jsonl")]
            change(rng.choice(files), rng)
            return path

        BAD.append(Bad(role, kind, make, True))


def _write_odd(file: Path, rng: random.Random) -> None:
    text = file.read_text().splitlines()[0] if file.suffix == ".jsonl" else file.read_text()
    file.write_text(json.dumps(odd_json(json.loads(text), rng)))


def _write_stranger(file: Path, rng: random.Random) -> None:
    file.write_text(
        rng.choice([DEEP, LONG_NUMBER, f'{{"a": {DEEP}}}', f'{{"schema": {LONG_NUMBER}}}',
                    "null", "[]", '"x"', "{}", "\ufeff{}", "{", "NaN", '{"header": null}',
                    '{"schema": ["a"], "header": {}}', '{"header": []}'])
    )  # fmt: skip


_for_role("odd JSON", _write_odd)
_for_role("another JSON", _write_stranger)


def _odd_header(rng: random.Random, header: dict[str, Any]) -> str:
    choices: list[Callable[[], str]] = [
        lambda: json.dumps(odd_json(header, rng)),
        lambda: json.dumps({**header, "config": []}),
        lambda: json.dumps({**header, "parents": [{}]}),
        lambda: json.dumps({**header, "schema": ["a"]}),
        lambda: json.dumps({**header, "facts": None}),
        lambda: DEEP,
        lambda: LONG_NUMBER,
        lambda: "null",
        lambda: "[]",
    ]
    return rng.choice(choices)()


@bad("backbone", "odd header", may_pass=True)
def _odd_backbone(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    source = good["backbone"] / "backbone.safetensors"
    header = json.loads(artifacts.tensors_header(source).json())
    return good_files.with_header(source, folder / "b.safetensors", _odd_header(rng, header))


for _role in ("captions", "images"):

    def _part(
        folder: Path, good: Mapping[str, Path], rng: random.Random, role: str = _role
    ) -> Path:
        source = next(good[role].glob("part-*.parquet"))
        header = json.loads(artifacts.open_any_parquet(source)[1].json())
        target = folder / "part-00000.parquet"
        return good_files.with_header(source, target, _odd_header(rng, header))

    BAD.append(Bad(_role, "odd header of a part", _part, True))


# ------------------------------------------------------------------------- safetensors


@bad("backbone", "hostile safetensors")
def _tensors(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    path = folder / "b.safetensors"
    if rng.random() < 0.2:
        path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")  # claims 2^60 bytes
        return path
    tensor = {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 4]}
    table = {
        "patch_embed.proj.weight": {"dtype": "F32", "shape": [192, 3, 8, 8],
                                    "data_offsets": [0, 192 * 3 * 64 * 4]},
        "pos_embed": {"dtype": "F32", "shape": [1, 0, 192],
                      "data_offsets": [192 * 3 * 64 * 4, 192 * 3 * 64 * 4]},
    }  # fmt: skip
    empty = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    header, body = rng.choice([
        ({"a": tensor}, b"\0" * 4),
        ({"a": {**tensor, "shape": [1], "data_offsets": [0, 1 << 40]}}, b"\0" * 4),
        ({"__metadata__": {"synclr": 5}}, b""),
        ({}, b""),
        (table, b"\0" * (192 * 3 * 64 * 4)),
        ({"patch_embed.proj.weight": empty, "pos_embed": {**empty, "data_offsets": [4, 8]}},
         b"\0" * 8),
        ([], b""),
    ])  # fmt: skip
    return good_files.safetensors(path, json.dumps(header).encode(), body)


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(_Harm.target),)

    target = Path("harm")


@bad("backbone", "pickle that runs code")
def _pickle(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    import pickle

    import torch

    _Harm.target = folder / "HARM"
    path = folder / "b.pth"
    if rng.random() < 0.5:
        torch.save({"state_dict": _Harm()}, path)
    else:
        path.write_bytes(pickle.dumps(_Harm()))
    return path


@bad("backbone", "odd .pth")
def _odd_pth(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    import torch

    path = folder / "b.pth"
    torch.save(
        rng.choice([[], 5, {}, {"state_dict": {}}, {1: torch.zeros(2)}, {"model": [1]},
                    {"patch_embed.proj.weight": torch.zeros(192, 3, 8, 8),
                     "pos_embed": torch.zeros(1, 0, 192)},
                    {"patch_embed.proj.weight": torch.zeros(()), "pos_embed": torch.zeros(())},
                    {"patch_embed.proj.weight": torch.zeros(192, 3, 8, 8),
                     "pos_embed": torch.zeros(1, 5, 192), "blocks.x": torch.zeros(1)}]),
        path,
    )  # fmt: skip
    return path


@bad("backbone", "odd name")
def _odd_name(folder: Path, good: Mapping[str, Path], rng: random.Random) -> str:
    return rng.choice(["random:", "random:resnet50", "timm:", "timm:no_such", "random:../..",
                       "timm:\0", "random:vit_tiny_patch16_224\n", ":", "random:" + "x" * 400,
                       "timm:hf-hub:a/b", "file:///etc/passwd", "-"])  # fmt: skip


# ------------------------------------------------------------------- labelled images, masks


def _image_file(rng: random.Random) -> bytes:
    """Return bytes that are no image, or one that nobody should decode."""
    whole = good_files.png(1)
    return rng.choice([
        b"", b"not an image", whole[: len(whole) // 2], whole[:20], claimed_png(60_000, 60_000),
        claimed_png(2**31 - 1, 2**31 - 1), claimed_png(0, 5), rng.randbytes(200),
        b"GIF89a" + rng.randbytes(100), b"\xff\xd8\xff" + rng.randbytes(100),
    ])  # fmt: skip


def claimed_png(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header claims so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


@bad("labelled pictures", "an image that is none")
def _bad_images(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    images = [{"bytes": good_files.png(i), "path": None} for i in range(24)]
    for i in range(24):
        images[i]["bytes"] = _image_file(rng)
    return good_files.labelled(folder / "d.parquet", image=images)


@bad("labelled", "odd labels")
def _odd_labels(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    labels: Any = rng.choice([
        pa.array([2**63 + i for i in range(24)], pa.uint64()), pa.nulls(24), [None] * 24,
        [1.5] * 24, [[]] * 24, [{"a": 1}] * 24, [b"x"] * 24, ["same"] * 24, [0] * 23 + [None],
        [[[1]]] * 24, pa.array([1] * 24, pa.timestamp("s")),
        pa.array([0, 1] * 12, pa.decimal128(5, 2)),
    ])  # fmt: skip
    return good_files.labelled(folder / "d.parquet", label=labels)


@bad("labelled", "odd Hugging Face metadata", may_pass=True)
def _odd_metadata(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    path = good_files.labelled(folder / "d.parquet")
    table = pq.read_table(path)
    feature: Any = rng.choice([None, [], 5, "x", {"names": 5}, {"names": None}, {"names": [1, 2]},
                               {"feature": None}, [None], {"names": {"a": 1}}, {"names": "abc"},
                               {"feature": {"names": 5}}])  # fmt: skip
    text: Any = rng.choice([
        json.dumps({"info": {"features": {"label": feature}}}), DEEP, LONG_NUMBER, "null", "[]",
        json.dumps({"info": {"features": []}}), json.dumps({"info": None}), b"\xff\xfe",
    ])  # fmt: skip
    pq.write_table(table.replace_schema_metadata({"huggingface": text}), path)
    return path


@bad("labelled masks pictures source captions words", "odd columns")
def _odd_columns(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    path = folder / "d.parquet"
    pq.write_table(
        rng.choice([
            pa.table({"image": ["a", "b"], "label": [0, 1]}),
            pa.table({"image": [1, 2], "label": [0, 1], "mask": [1, 2]}),
            pa.table({"x": [1]}),
            pa.table({}),
            pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}),
            pa.table({"image": pa.nulls(3), "label": [0, 1, 2], "mask": pa.nulls(3),
                      "caption": pa.nulls(3), "concept": pa.nulls(3)}),
            pa.table({"image": [[b"x"]], "label": [0], "caption": [[[]]]}),
            pa.table([pa.array([1]), pa.array([2])], names=["caption", "caption"]),
            pa.table({"caption": pa.array([1.5]), "image": [b"x"]}),
            pa.table({"caption_id": pa.array([2**63 + 1], pa.uint64()), "caption": [5]}),
        ]),
        path,
    )  # fmt: skip
    return path


@bad("masks", "odd masks")
def _odd_masks(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    ids = Image.new("I;16", (good_files.SIZE, good_files.SIZE), 60_000)
    kind = rng.choice(["large id", "none", "size", "colour", "null"])
    cell: dict[str, bytes | None] = {
        "large id": good_files.encoded(ids),
        "none": b"not an image",
        "size": good_files.encoded(Image.new("L", (3, 5))),
        "colour": good_files.png(1),
        "null": None,
    }
    masks = [{"bytes": good_files.mask(i), "path": None} for i in range(24)]
    masks[rng.randrange(24)]["bytes"] = cell[kind]
    return good_files.labelled(folder / "d.parquet", label=None, mask=masks)


@bad("pictures labelled", "captions for images")
def _captions_for_images(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    return good["captions"]


@bad("labelled", "class folders of nothing")
def _class_folders(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    for name in ("a", "b"):
        (folder / "d" / name).mkdir(parents=True)
        for i in range(4):
            (folder / "d" / name / f"{i}.png").write_bytes(_image_file(rng))
    return folder / "d"


@bad("labelled", "odd scheme")
def _odd_scheme(folder: Path, good: Mapping[str, Path], rng: random.Random) -> str:
    return rng.choice(["torchvision:NoSuch", "torchvision:", "torchvision:_x", "nosuch:x", "",
                       "torchvision:VisionDataset", "file:///x"])  # fmt: skip


# ------------------------------------------------------------------- sources of `import`


@bad("source", "odd CSV")
def _odd_csv(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    path = folder / "d.csv"
    path.write_bytes(rng.choice([
        b"", b"path,caption\n", b"a.png\n", b'"a.png,x\n', b"\xff\xfe\x00", b"a.png,x,y\n",
        b"../../../etc/passwd,x\n", b"/etc/passwd,x\n", b"a.png," + b"x" * (2 << 20),
        b"path,caption\n\0,\0\n", b"path,caption\n" + b"a" * 300 + b".png,x\n", b"\n\n\n",
        b"missing.png,a fox\n", b"a.png\0b.png,x\n",
    ]))  # fmt: skip
    return path


@bad("source", "odd tar")
def _odd_tar(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    path = folder / "d.tar"
    kind = rng.choice(["sparse", "no caption", "links", "noise", "empty", "deep json", "bad image"])
    if kind == "noise":
        path.write_bytes(rng.randbytes(2048))
        return path
    with tarfile.open(path, "w") as tar:
        members: dict[str, bytes] = {
            "no caption": {"a.png": good_files.png(1)},
            "deep json": {"a.json": DEEP.encode(), "a.png": good_files.png(1)},
            "bad image": {"a.png": b"x", "a.txt": b"a fox"},
        }.get(kind, {})
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if kind == "links":
            info = tarfile.TarInfo("a.png")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    if kind == "sparse":
        info = tarfile.TarInfo("a.png")
        info.size = 20 << 30
        path.write_bytes(info.tobuf())
        os.truncate(path, (20 << 30) + 4096)
    return path


# --------------------------------------------------------------------- words and captions


@bad("words", "odd words")
def _odd_words(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    name, data = rng.choice([
        ("w.txt", b""), ("w.txt", b"\n\n\n"), ("w.txt", b"\xff\xfe"), ("w.txt", b"x" * 100_000),
        ("w.csv", b"a,b\n1,2\n"), ("w.csv", b"concept,weight\nfox,many\n"),
        ("w.csv", b"concept,kind\nfox,animal\n"), ("w.csv", b'concept\n"fox\n'),
        ("w.csv", b"concept,weight\nfox,-1\n"), ("w.csv", b"concept,weight\nfox,nan\n"),
        ("w.xyz", b"fox\n"), ("w.csv", b""), ("w.txt", b"\0\0\0\n"), ("w.txt", b"# only\n"),
        ("w.csv", b"concept\n" + b"x" * 200_000 + b"\n"),
        ("w.csv", b"concept,weight\nfox,0\n"),
    ])  # fmt: skip
    (folder / name).write_bytes(data)
    return folder / name


@bad("captions", "odd captions")
def _odd_captions(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    name, data = rng.choice([
        ("c.txt", b""), ("c.txt", b"\xff\xfe"), ("c.csv", b"a,b\n1,2\n"), ("c.csv", b"caption\n"),
        ("c.csv", b'caption\n"fox\n'), ("c.txt", b"x" * 2_000_000), ("c.tsv", b"caption\n\n\n"),
        ("c.csv", b"caption,caption\na,b\n"), ("c.csv", b"caption_id,caption\nx,fox\n"),
        ("c.doc", b"a fox\n"), ("c.csv", b"caption_id,caption\n1,fox\n1,bird\n"),
        ("c.csv", b"caption\n,\n"),
    ])  # fmt: skip
    (folder / name).write_bytes(data)
    return folder / name


@bad("captions", "odd captions in Parquet")
def _odd_caption_rows(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    path = folder / "c.parquet"
    columns: Any = rng.choice([
        {"caption": [None, "a fox"]}, {"caption": ["", "a fox"]}, {"caption": pa.nulls(2)},
        {"caption_id": pa.array([2**63 + 1, 5], pa.uint64()), "caption": ["a", "b"]},
        {"caption_id": [1, None], "caption": ["a", "b"]}, {"caption": [b"\xff", b"x"]},
        {"caption_id": [1, 1], "caption": ["a", "b"]}, {"caption": ["x" * 100_000, "y"]},
        {"caption": ["a", "b"], "concept": [1, 2]}, {"caption": [["a"], ["b"]]},
        {"caption_id": [1.5, 2.5], "caption": ["a", "b"]},
    ])  # fmt: skip
    pq.write_table(pa.table(columns), path)
    return path


# ---------------------------------------------------------------------- presets and settings


@bad("preset", "odd preset")
def _odd_preset(folder: Path, good: Mapping[str, Path], rng: random.Random) -> Path:
    path = folder / "p.toml"
    path.write_bytes(rng.choice([
        b"[train\n", b"\xff\xfe", b"x = 1\n", b"[nosuch]\na = 1\n", b"[train]\nnosuch = 1\n",
        b"[train]\nsteps = [[]]\n", f"[train]\nsteps = {LONG_NUMBER}\n".encode(),
        f"[train]\nsteps = {DEEP}\n".encode(), b"[train]\nsteps = nan\n", b"train = 5\n",
        b"[train]\nsteps = 1\nsteps = 2\n", b"[train.steps.x]\ny = 1\n", b"x" * (2 << 20),
        b"[render]\nengine = 5\n", b"[captions.engine]\noptions = 5\n", b"[[train]]\nsteps = 1\n",
        b"[train]\narch = '\x1b[31m'\n", b"[train]\nsteps = 1979-05-27T07:32:00Z\n",
        b"[train]\n" + b"a" * 1000 + b" = 1\n",
    ]))  # fmt: skip
    return path


VALUES = (
    "", "x", "-1", "0", "1e30", "1e308", "nan", "inf", "-inf", "[]", "[1]", "{}", "{a=1}", "true",
    '"x"', LONG_NUMBER, "1e9999", "[[1]]", "'\\x00'", "\x00", "x" * 3000, "0.0000001", "[nan, nan]",
    "1979-05-27", "0x10", DEEP, "\x1b[31m", '"\\u0000"', "-0.0", "99999999",
)  # fmt: skip
