"""Does it learn? SynCLR beside SimCLR and random weights, on the same drawn pictures.

    python benchmarks/train_result.py --out FOLDER [--cifar FOLDER] [--minutes 25] [--png FILE]

Captions by SmolLM2 and by rule, four `procedural:` pictures of each, then for either set the preset
`tiny` twice: as it is, and as SimCLR's contrast (every image a class of its own, two crops of it;
otherwise the same recipe, as many crops a step, as many steps). Backbones kept on the way are
graded by k-NN and by a linear probe on scikit-learn's digits, on drawn things of ten other words,
and, where a folder of its Parquet files is given, on CIFAR-10. Nothing is made twice: after
`--minutes` it stops, and the same command goes on. Writes FOLDER/result.json and a PNG.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from synclr_cli import presets
from synclr_cli.linear_probe.run import run as linear_probe
from synclr_cli.quickstart import HELD_OUT_WORDS

TINY = (
    ("SynCLR", ()),
    # As many crops a step: two pictures of each caption, two crops of each picture.
    ("SimCLR", ("train.positives=image", "train.views=2", "train.global_crops=2")),
)
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
        road("render", captions, "--seed", seed, "-o", out / "things" / split)
    return out / "things"


def grades(backbone: str, out: Path, data: dict[str, str], seeds: range) -> dict[str, float]:
    """Return a backbone's top-1 by data and protocol, the mean over seeds of the judge."""
    found = {}
    for data_name, spec in data.items():
        for protocol_name, protocol in PROTOCOLS.items():
            scores = []
            for seed in seeds[:1] if data_name == "CIFAR-10" else seeds:
                sets = [f"linear-probe.protocol={protocol}", f"linear-probe.seed={seed}"]
                # For a curve: fewer penalties, features made alike, which the solver likes.
                sets += ["linear-probe.penalties=12", "linear-probe.standardise=true"]
                config = presets.resolve("linear-probe", preset="tiny", sets=sets).config
                folder = out / f"{data_name}-{protocol}-seed{seed}"
                scores.append(linear_probe(config, backbone, spec, folder)["top1"])
            found[f"{data_name}, {protocol_name}"] = sum(scores) / len(scores)
    return found


def draw(result: dict[str, Any], png: Path) -> None:
    """Draw one panel for each captions set and grade."""
    grades_of = list(next(iter(result["random"].values()))[0])
    sets = list(result["curves"])
    figure = Figure(figsize=(3.4 * len(grades_of), 3.1 * len(sets)), dpi=110, layout="constrained")
    panels = figure.subplots(len(sets), len(grades_of), squeeze=False)
    for row, captions in zip(panels, sets, strict=True):
        for panel, grade in zip(row, grades_of, strict=True):
            for (run, points), colour in zip(
                result["curves"][captions].items(), ("#1668b8", "#d1701c"), strict=True
            ):
                steps = [p["step"] for p in points]
                panel.plot(steps, [p[grade] for p in points], "o-", color=colour, label=run)
            floor = [r[grade] for r in result["random"][captions]]
            panel.axhspan(min(floor), max(floor), color="0.75", label="random weights")
            panel.set_title(f"{grade} ({captions} captions)", fontsize=9)
            panel.set_xlabel("step", fontsize=8)
            panel.set_ylabel("top-1, %", fontsize=8)
            panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    figure.savefig(png)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--captions", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--points", type=int, default=3, help="backbones graded on the way")
    parser.add_argument("--engines", default="smollm2,template")
    parser.add_argument("--cifar", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--set", action="append", default=[], help="for both runs")
    given = parser.parse_args()
    out: Path = given.out
    road = Road(given.minutes)

    data = {"digits": "digits:", "drawn things": str(drawn_things(road, out))}
    if given.cifar:
        data["CIFAR-10"] = str(small_cifar(given.cifar, out, 5000, 2000))
    result: dict[str, Any] = {"command": sys.argv[1:], "curves": {}, "random": {}, "last": {}}
    for engine in given.engines.split(","):
        captions, images = out / f"{engine}.parquet", out / engine
        road("captions", "-c", "in21k", "-n", given.captions, "--engine", f"{engine}:",
             "-o", captions)  # fmt: skip
        road("render", captions, "-o", images)
        curves: dict[str, list[dict[str, Any]]] = {}
        for name, switches in TINY:
            run = out / "runs" / f"{engine}-{name}"
            every = given.steps // given.points
            settings = [f"train.steps={given.steps}", f"train.backbone_steps={every}"]
            sets = [a for s in (*settings, *given.set, *switches) for a in ("--set", s)]
            road("train", images, "-o", run, *sets)
            if not (run / "backbone.safetensors").is_file():
                road.end()
            curves[name] = []
            for step in range(every, given.steps + 1, every):
                road.still()
                kept = run / "backbones" / f"step-{step:08d}"
                graded = grades(str(kept), out / "grades" / run.name / kept.name, data, range(3))
                curves[name].append({"step": step, **graded})
            lines = (run / "metrics.jsonl").read_text().splitlines()
            result["last"][f"{engine}, {name}"] = json.loads(lines[-1])
        result["curves"][engine] = curves
        result["random"][engine] = [
            grades(f"random:{run}", out / "grades" / f"random-{seed}", data, range(seed, seed + 1))
            for seed in range(3)
        ]
        (out / "result.json").write_text(json.dumps(result, indent=1))
    draw(result, given.png or out / "result.png")
    print(json.dumps({k: result[k] for k in ("curves", "random")}, indent=1))


if __name__ == "__main__":
    main()
