"""Does it learn? The objectives of Table 5 and random weights, on the same drawn images.

    python benchmarks/train_result.py --out FOLDER [--cifar FOLDER] [--minutes 25] [--png FILE]
        [--captions 1024] [--steps 900] [--points 3] [--seeds 3] [--rows 1,2] [--set train.x=y]

Captions by SmolLM2 (or by rule, `--engines template`), four `procedural:` images of each, then
the preset `tiny` under each objective of ROWS, with as many crops a step and as many steps.
Backbones kept on the way are graded by k-NN and by a linear probe on scikit-learn's digits, on
drawn things of ten other words, and, where a folder of its Parquet files is given, on CIFAR-10.
Nothing is made twice: after `--minutes` it stops, and the same command goes on. Writes
FOLDER/result.json and a PNG, after each run anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from synclr_cli import presets
from synclr_cli.linear_probe.run import run as linear_probe
from synclr_cli.quickstart import HELD_OUT_WORDS

# The family's switches (docs/train.md): neither teacher nor masked patches nor local crops.
PLAIN = ("train.teacher=false", "train.patch_weight=0", "train.local_crops=0")
# As many crops a step: two images of each caption, two crops of each image.
IMAGES = ("train.positives=image", "train.views=2", "train.global_crops=2")
ROWS = {
    "SynCLR": (),
    "SimCLR": (*PLAIN, *IMAGES),  # Table 5's
    "caption as class": PLAIN,  # StableRep, Table 4's first row
    "every image a class, else SynCLR": IMAGES,
}
COLOURS = ("#1668b8", "#d1701c", "#4c9a4c", "#8a5fb0", "#a03050", "#607080")  # of a panel's rows
# 64 px drawings, whatever the preset paints with.
DRAWN = ("render.engine.name=procedural:", "render.engine.size=64", "render.stored_size=64")
SHAPE = ("train.image_size=64", "train.local_size=32", "train.patch_size=16")
# For a curve: a few penalties, features made alike, which the solver likes.
QUICK = ("standardise=true", "penalties=7", "highest_penalty=1.0", "iterations=200")
PROTOCOLS = {"k-NN": "knn", "linear probe": "lbfgs"}


class Road:
    """Runs synclr's commands until the time is up."""

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes

    def still(self) -> float:
        """Return the minutes left, or end the program."""
        left = (self._end - time.monotonic()) / 60
        if left < 0.2:
            self.end()
        return left

    def end(self) -> NoReturn:
        """End the program."""
        print("the time is up; the same command goes on", file=sys.stderr)
        raise SystemExit(0)

    def __call__(self, *arguments: object) -> None:
        left = self.still()
        command = [sys.executable, "-m", "synclr_cli", *map(str, arguments)]
        if arguments[0] == "train":
            command += ["--set", f"train.stop_after_minutes={left:.2f}"]
        subprocess.run(command, check=True)


def with_sets(settings: Sequence[str]) -> list[str]:
    """Return settings as arguments of a command."""
    return [argument for setting in settings for argument in ("--set", setting)]


def asked_rows(rows: dict[str, Any], asked: str) -> dict[str, Any]:
    """Return the rows of these numbers, from 1 on; none asked for: all."""
    names = list(rows)
    return {names[int(n) - 1]: rows[names[int(n) - 1]] for n in asked.split(",")} if asked else rows


def small_cifar(folder: Path, out: Path, train: int, test: int) -> Path:
    """Write some rows of each split of CIFAR-10, drawn with a fixed seed."""
    for split, count in (("train", train), ("test", test)):
        table = pq.read_table(folder / f"{split}.parquet")
        rows = np.random.default_rng(0).permutation(len(table))[:count]
        (out / "cifar10").mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(rows), out / "cifar10" / f"{split}.parquet")
    return out / "cifar10"


def drawn_things(road: Road, out: Path) -> Path:
    """Render ten kinds of thing from captions and seeds that nothing is trained on."""
    words = out / "held-out-words.txt"
    words.write_text("\n".join(HELD_OUT_WORDS) + "\n", encoding="utf-8")
    for split, count, seed in (("train", 160, 1), ("test", 80, 2)):
        captions = out / f"things-{split}.parquet"
        road("captions", "-c", words, "-n", count, "--engine", "template:", "--seed", seed,
             "-o", captions)  # fmt: skip
        road("render", captions, "--seed", seed, *with_sets(DRAWN), "-o", out / "things" / split)
    return out / "things"


def grades(
    backbone: str,
    out: Path,
    data: dict[str, str],
    seeds: Sequence[int],
    quick: Sequence[str] = QUICK,
) -> dict[str, float]:
    """Return a backbone's top-1 by data and protocol, in %, the mean over seeds of the judge.

    A seed also draws random weights; trained ones have one grade on CIFAR-10, whose split is given.
    """
    found = {}
    for data_name, spec in data.items():
        for protocol_name, protocol in PROTOCOLS.items():
            scores = []
            for seed in seeds[:1] if data_name == "CIFAR-10" else seeds:
                sets = [f"linear-probe.protocol={protocol}", f"linear-probe.seed={seed}"]
                sets += [f"linear-probe.{s}" for s in quick]
                config = presets.resolve("linear-probe", preset="tiny", sets=sets).config
                folder = out / f"{data_name}-{protocol}-seed{seed}"
                for features in out.glob(f"{data_name}-*-seed{seed}/features-*.safetensors"):
                    folder.mkdir(parents=True, exist_ok=True)
                    if not (folder / features.name).exists():
                        os.link(features, folder / features.name)  # the same for both protocols
                scores.append(linear_probe(config, backbone, spec, folder)["top1"])
            found[f"{data_name}, {protocol_name}"] = sum(scores) / len(scores)
    return found


def graded_points(
    road: Road,
    run: Path,
    steps: Sequence[int],
    out: Path,
    data: dict[str, str],
    seeds: Sequence[int],
    quick: Sequence[str] = QUICK,
) -> list[dict[str, Any]]:
    """Return the grades of the backbones that a run kept at these steps."""
    points = []
    for step in steps:
        road.still()
        kept = run / "backbones" / f"step-{step:08d}"
        points.append({"step": step, **grades(str(kept), out / kept.name, data, seeds, quick)})
    return points


def means(runs: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """Return the points of a curve, each the mean over training seeds."""
    return [
        {key: sum(p[key] for p in points) / len(points) for key in points[0]}
        for points in zip(*runs, strict=True)
    ]


def draw(result: dict[str, Any], png: Path) -> None:
    """Draw a row of panels for each captions set and protocol: means over seeds, seeds as dots."""
    rows = [(captions, protocol) for captions in result["curves"] for protocol in PROTOCOLS]
    data = list(dict.fromkeys(grade.split(", ")[0] for grade in result["random"][rows[0][0]][0]))
    size = (3.6 * len(data), 2.9 * len(rows))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(len(rows), len(data), squeeze=False)
    for row, (captions, protocol) in zip(panels, rows, strict=True):
        floor = means([[r] for r in result["random"][captions]])[0]
        for panel, data_name in zip(row, data, strict=True):
            grade = f"{data_name}, {protocol}"
            for colour, (name, runs) in zip(
                COLOURS, result["curves"][captions].items(), strict=False
            ):
                points = [{"step": 0, **floor}, *means(runs)]
                steps = [p["step"] for p in points]
                panel.plot(steps, [p[grade] for p in points], "o-", color=colour, label=name)
                for p in (p for run in runs for p in run):
                    panel.plot(p["step"], p[grade], ".", color=colour, alpha=0.5, markersize=4)
            panel.axhline(floor[grade], color="0.5", linestyle="--", label="random weights")
            panel.set_title(f"{grade} ({captions})", fontsize=9)
            panel.set_xlabel("step", fontsize=8)
            panel.set_ylabel("top-1, %", fontsize=8)
            panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=7)
    figure.savefig(png)


def cost(run: Path) -> dict[str, float]:
    """Return what a run took: TFLOP of matrix products, and its losses at the end."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last, config = lines[-1], json.loads((run / "run.json").read_text())["config"]
    crops = config["captions_per_batch"] * config["views"] * config["global_crops"]
    a_image = last["model_tflop_per_s"] / last["images_per_s"]
    kept = ("loss_global", "loss_local", "loss_patch", "effective_rank", "similarity_gap")
    return {"tflop": a_image * crops * last["step"], **{k: last[k] for k in kept}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--captions", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--points", type=int, default=3, help="backbones graded on the way")
    parser.add_argument("--engines", default="smollm2")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each objective")
    parser.add_argument("--splits", type=int, default=3, help="of digits and drawn things")
    parser.add_argument("--cifar", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--rows", default="", help="numbers of the rows to run; all")
    parser.add_argument("--png", type=Path)
    parser.add_argument("--set", action="append", default=[], help="for all runs")
    given = parser.parse_args()
    out: Path = given.out
    road = Road(given.minutes)

    data = {"digits": "digits:", "drawn things": str(drawn_things(road, out))}
    if given.cifar:
        data["CIFAR-10"] = str(small_cifar(given.cifar, out, 5000, 2000))
    every = given.steps // given.points
    result: dict[str, Any] = {"command": sys.argv[1:], "curves": {}, "random": {}, "runs": {}}
    for engine in given.engines.split(","):
        captions, images = out / f"{engine}.parquet", out / engine
        road("captions", "-c", "in21k", "-n", given.captions, "--engine", f"{engine}:",
             "-o", captions)  # fmt: skip
        road("render", captions, *with_sets(DRAWN), "-o", images)
        curves = result["curves"][engine] = {}
        # Seed after seed, so that what is finished when the time is up is one row of each.
        for seed in range(given.seeds):
            for name, switches in asked_rows(ROWS, given.rows).items():
                run = out / "runs" / f"{engine}-{name.replace(' ', '-')}-seed{seed}"
                settings = [f"train.steps={given.steps}", f"train.backbone_steps={every}"]
                settings += [*SHAPE, f"train.seed={seed}", *given.set, *switches]
                road("train", images, "-o", run, *with_sets(settings))
                if not (run / "backbone.safetensors").is_file():
                    road.end()
                steps = range(every, given.steps + 1, every)
                folder = out / "grades" / run.name
                points = graded_points(road, run, steps, folder, data, range(given.splits))
                curves.setdefault(name, []).append(points)
                result["runs"][run.name] = cost(run)
                if engine not in result["random"]:
                    result["random"][engine] = [
                        grades(f"random:{run}", out / "grades" / f"random-{i}", data, [i])
                        for i in range(3)
                    ]
                (out / "result.json").write_text(json.dumps(result, indent=1))
                draw(result, given.png or out / "result.png")
    for engine, curves in result["curves"].items():
        last = {name: means(runs)[-1] for name, runs in curves.items()}
        last["random weights"] = means([[r] for r in result["random"][engine]])[0]
        print(json.dumps({engine: last}, indent=1))


if __name__ == "__main__":
    main()
