"""Every command that makes something, as small as it goes, and what a folder holds afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bad_inputs
import good_files

Line = Callable[[Mapping[str, Path]], list[object]]


def _tuning(command: str, data: str) -> Line:
    return lambda good: [*bad_inputs.tuning(command, good["backbone"], good[data])]


LINES: dict[str, Line] = {  # without --out
    "captions": lambda good: [
        "captions", "--concepts", good["words"], "-n", "8", "--engine", "template:",
        "--set", "captions.captions_per_part=2"],
    "render": lambda good: [
        "render", good["captions"], "--engine", "procedural:", "--views", "2",
        "--set", "render.engine.size=16", "--set", "render.captions_per_part=2"],
    "import": lambda good: ["import", good["photos"]],
    "train": lambda good: ["train", good["images"], *good_files.small_training(steps=3)],
    "linear-probe": _tuning("linear-probe", "labelled"),
    "finetune": _tuning("finetune", "labelled"),
    "segment": _tuning("segment", "masks"),
    "export": lambda good: ["export", good["backbone"], "--to", "timm"],
    "show": lambda good: ["show", good["backbone"], "--images", good["labelled"]],
}  # fmt: skip
SLOW_LINES: dict[str, Line] = {
    "captions smollm2:": lambda good: [
        "captions", "--concepts", good["words"], "-n", "4", "--engine", "smollm2:",
        "--set", "captions.captions_per_part=2", "--set", "captions.engine.max_new_tokens=12"],
    "render pocket:": lambda good: [
        "render", good["captions"], "--engine", "pocket:", "--views", "1",
        "--set", "render.engine.steps=2", "--set", "render.captions_per_part=2"],
}  # fmt: skip
_MEASURED = re.compile(
    r".*(_s|_gb|second|minute|wait|memory|mfu|utilisation).*"
)  # differs run by run


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not _MEASURED.fullmatch(k)}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    """Return all files and folders below one: bytes, or JSON without what tells of time."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "folder"
        elif path.name == "state.json":
            found[name] = (
                "there"  # what was measured since the last line; the tensors lie beside it
            )
        elif path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "README.md" or path.suffix == ".png":
            found[name] = "there"  # they tell names of folders and times
        else:
            found[name] = path.read_bytes()
    return found


def difference(got: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the names of files that are missing, left over or other."""
    return sorted(n for n in {*got, *expected} if got.get(n) != expected.get(n))
