"""Commands and the bad inputs they are given: cases drawn from a seed, and what came of them."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import good_files
from bad_files import BAD, VALUES, Bad

from synclr_cli import config as configs

SMALL_TUNING = {
    "linear-probe": ("linear-probe.penalties=2", "linear-probe.iterations=2",
                     "linear-probe.workers=0"),
    "finetune": ("finetune.epochs=1", "finetune.warmup_epochs=0", "finetune.batch_size=4",
                 "finetune.workers=0"),
    "segment": ("segment.steps=1", "segment.warmup_steps=0", "segment.image_size=16",
                "segment.short_side=16", "segment.stride=11", "segment.batch_size=2",
                "segment.channels=4", "segment.auxiliary_channels=4", "segment.workers=0",
                "segment.validation_steps=1", "segment.checkpoint_steps=1"),
}  # fmt: skip
LONGEST_LINE = 300  # characters of an error


def _sets(values: Sequence[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def tuning(command: str, backbone: Path | str, data: Path | str) -> list[str]:
    return [command, str(backbone), "--data", str(data), *_sets(SMALL_TUNING[command])]


Line = Callable[[str, Mapping[str, Path]], list[str]]  # bad input, good ones -> arguments
# Role -> (what the table calls it, arguments). `{out}` is where the command may write.
LINES: dict[str, list[tuple[str, Line]]] = {
    "words": [
        ("captions --concepts", lambda x, g: ["captions", "--concepts", x, "-n", "4", "--engine",
                                              "template:"]),
        ("captions backgrounds", lambda x, g: ["captions", "--concepts", str(g["words"]), "-n", "4",
                                               "--engine", "template:", "--set",
                                               f"captions.backgrounds={x}"]),
    ],
    "captions": [
        ("render", lambda x, g: ["render", x, "--engine", "procedural:", "--views", "1",
                                 "--set", "render.engine.size=16"]),
        ("inspect captions", lambda x, g: ["inspect", x, "--verify"]),
    ],
    "images": [
        ("train", lambda x, g: ["train", x, *good_files.small_training(steps=1, warmup_steps=0)]),
        ("inspect images", lambda x, g: ["inspect", x]),
    ],
    "run": [
        ("train --init", lambda x, g: ["train", str(g["images"]), "--init", x,
                                       *good_files.small_training(steps=1, warmup_steps=0)]),
        ("inspect run", lambda x, g: ["inspect", x]),
    ],
    "backbone": [
        ("linear-probe BACKBONE", lambda x, g: tuning("linear-probe", x, g["labelled"])),
        ("export", lambda x, g: ["export", x, "--to", "timm"]),
        ("show BACKBONE", lambda x, g: ["show", x, "--images", str(g["labelled"])]),
        ("inspect backbone", lambda x, g: ["inspect", x]),
    ],
    "labelled": [
        ("linear-probe --data", lambda x, g: tuning("linear-probe", g["backbone"], x)),
        ("finetune --data", lambda x, g: tuning("finetune", g["backbone"], x)),
    ],
    "masks": [("segment --data", lambda x, g: tuning("segment", g["backbone"], x))],
    "pictures": [("show --images", lambda x, g: ["show", str(g["backbone"]), "--images", x])],
    "report": [
        ("compare", lambda x, g: ["compare", x, "--markdown", "{out}.md"]),
        ("inspect report", lambda x, g: ["inspect", x]),
    ],
    "source": [("import", lambda x, g: ["import", x])],
    "preset": [
        (f"{command} --preset", lambda x, g, command=command: [*_whole(command, g), "--preset", x])
        for command in ("captions", "render", "train", "linear-probe", "finetune", "segment")
    ],
}  # fmt: skip
_HAS_NO_OUT = {"inspect", "compare"}
_TAKES_PNG = {"inspect"}


def _whole(command: str, good: Mapping[str, Path]) -> list[str]:
    """Return a command line that would do, but for its settings."""
    if command in SMALL_TUNING:
        return tuning(command, good["backbone"], good["masks" if command == "segment"
                                                       else "labelled"])  # fmt: skip
    return {
        "captions": ["captions", "--concepts", str(good["words"]), "-n", "4", "--engine",
                     "template:"],
        "render": ["render", str(good["captions"]), "--engine", "procedural:"],
        "train": ["train", str(good["images"]), *good_files.small_training()],
    }[command]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One command line with one bad input."""

    number: int
    seed: int
    command: str  # for the table
    kind: str
    bad: Bad | None  # None: a bad `--set`
    line: Line
    key: str = ""

    def arguments(self, folder: Path, good: Mapping[str, Path]) -> list[str]:
        """Make the bad input in a folder and return the command line."""
        rng = random.Random(f"{self.seed} {self.number}")
        if self.bad is None:
            arguments = [*self.line("", good), "--set", f"{self.key}={rng.choice(VALUES)}"]
        else:
            arguments = self.line(str(self.bad.make(folder, good, rng)), good)
        if arguments[0] not in _HAS_NO_OUT:
            arguments += ["--out", "{out}"]
        if arguments[0] in _TAKES_PNG:
            arguments += ["--png", "{out}.png"]
        return [a.replace("{out}", str(folder / "out")) for a in arguments]

    @property
    def may_pass(self) -> bool:
        """Return whether what is bad may be harmless."""
        return self.bad is None or self.bad.may_pass


def cases(count: int, seed: int) -> list[Case]:
    """Draw cases: every kind for every command first, then at random, a tenth of them settings."""
    pairs = [(b, name, line) for b in BAD for name, line in LINES[b.role]]
    rng = random.Random(seed)
    keys = [f"{stage}.{key}" for stage in configs.STAGES for key in configs.keys(stage)]
    drawn = []
    order = rng.sample(pairs, len(pairs))
    for number in range(count):
        if number % 10 == 9:
            key = rng.choice(keys)
            stage = key.partition(".")[0]
            drawn.append(
                Case(number, seed, f"{stage} --set", "odd setting", None,
                     lambda _, good, stage=stage: _whole(stage, good), key)  # type: ignore[misc]
            )  # fmt: skip
        else:
            bad, name, line = order[number % len(order)]
            drawn.append(Case(number, seed, name, bad.kind, bad, line))
    return drawn


def fault(case: Case, outcome: Any) -> str | None:
    """Return what is wrong with how a command ended, None if it ended as it should."""
    if outcome.code == 0:
        return None if case.may_pass else "exit 0"
    if outcome.code not in (2, 3, 4) and not (outcome.code == 5 and case.may_pass):
        return f"exit {outcome.code}"
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    if len(errors) != 1:
        return f"{len(errors)} error lines"
    if not outcome.err.rstrip().endswith(errors[0].rstrip()):
        return "the error is not the last line"
    if len(errors[0]) > LONGEST_LINE:
        return f"a line of {len(errors[0])} characters"
    text = outcome.out + outcome.err
    if any(ord(c) < 32 and c not in "\n\t" for c in text) or "\u202e" in text:
        return "control characters"
    return None


def snapshot(paths: Iterable[Path]) -> dict[str, bytes]:
    """Return the bytes of all files in folders."""
    return {
        str(p): p.read_bytes() for path in paths
        for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()
    }  # fmt: skip


def table(results: Sequence[tuple[Case, int]]) -> str:
    """Return how often each command met each kind, by exit code, as Markdown."""
    counts = Counter((case.command, case.kind, code) for case, code in results)
    lines = ["| command | kind | exit 0 | 2 | 3 | 4 | 5 |", "| --- | --- |" + " ---: |" * 5]
    for command, kind in sorted({(c.command, c.kind) for c, _ in results}):
        row = [str(counts[command, kind, code] or "") for code in (0, 2, 3, 4, 5)]
        lines.append(f"| {command} | {kind} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def clear(folder: Path) -> None:
    """Remove a case's folder."""
    shutil.rmtree(folder, ignore_errors=True)
