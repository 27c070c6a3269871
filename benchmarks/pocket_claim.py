"""The paper's claim at a laptop's size: images of `pocket:` against the real ones it was taught.

    synclr captions -p cifar -n 2560 && synclr render -p cifar -o painted
    python benchmarks/pocket_claim.py --painted painted --cifar FOLDER --out FOLDER
        [--preset tiny] [--steps 900] [--points 1] [--seeds 3] [--minutes 40] [--rows 1,2]
        [--set train.x=y]

The ViT and batch of a preset, as many crops a step and as many steps in each row, judged
on real CIFAR-10 by k-NN and linear probe. The real images are as many of its training
images, four of a class under one caption, so that every recipe can be run on them too. **In the
generator's domain by construction**: `pocket:` was trained on CIFAR-10's training images, so
nothing here says that painting beats photographing. Nothing is made twice; after `--minutes` it
stops, and the same command goes on. With `--points` backbones are kept and graded on the way.
Writes FOLDER/result.json and FOLDER/result.png after each run anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from train_result import (
    IMAGES,
    PLAIN,
    Road,
    asked_rows,
    cost,
    draw,
    graded_points,
    grades,
    small_cifar,
    with_sets,
)

from synclr_cli.data.manifest import open_dataset

ROWS = {  # images, switches
    "SynCLR, painted": ("painted", ()),
    "SynCLR without masked patches, painted": ("painted", ("train.patch_weight=0",)),
    "SimCLR, painted": ("painted", (*PLAIN, *IMAGES)),
    "caption as class, painted": ("painted", PLAIN),  # StableRep
    "SimCLR, real": ("real", (*PLAIN, *IMAGES)),
    "class as caption, real": ("real", PLAIN),
}
VIEWS = 4
# More strengths than a curve needs: the best one lies above 1 for trained backbones.
STRENGTHS = ("standardise=true", "penalties=9", "highest_penalty=100.0", "iterations=200")


def real_images(cifar: Path, count: int, out: Path) -> Path:
    """Write images of the training split, four of a class under a caption of their own."""
    table = pq.read_table(cifar / "train.parquet", columns=["image", "label"])
    labels = table["label"].to_numpy()
    order = np.random.default_rng(0).permutation(len(labels))
    rows, captions = [], []
    for kind in range(10):
        own = order[labels[order] == kind][: count // 10 // VIEWS * VIEWS]
        rows += own.tolist()
        captions += [f"class {kind}, group {i // VIEWS}" for i in range(len(own))]
    chosen = table.take(rows).drop_columns("label")
    path = out / "real.parquet"
    pq.write_table(chosen.append_column("caption", pa.array(captions)), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--painted", type=Path, required=True)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument(
        "--points", type=int, default=1, help="backbones graded of a run; divides --steps"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="for all runs")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--rows", default="", help="numbers of the rows to run; all")
    given = parser.parse_args()
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    road = Road(given.minutes)

    parts = open_dataset(given.painted, "images").paths()
    count = sum(pq.read_metadata(part).num_rows for part in parts)
    images = {"painted": given.painted, "real": out / "real"}
    road("import", real_images(given.cifar, count, out), "-o", images["real"])
    data = {"CIFAR-10": str(small_cifar(given.cifar, out, 10_000, 10_000))}
    every = given.steps // given.points
    result: dict[str, Any] = {"images": count, "steps": given.steps, "runs": {}}
    curves: dict[str, list[list[dict[str, float]]]] = {}
    floors: dict[str, list[dict[str, float]]] = {}
    # Seed after seed, so that what is finished when the time is up is one row of each.
    for seed in range(given.seeds):
        for name, (kind, switches) in asked_rows(ROWS, given.rows).items():
            run = out / "runs" / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
            settings = [f"train.steps={given.steps}", f"train.seed={seed}"]
            settings += [f"train.backbone_steps={every}", *given.set, *switches]
            road("train", images[kind], "-p", given.preset, "-o", run, *with_sets(settings))
            if not (run / "backbone.safetensors").is_file():
                road.end()
            steps = range(every, given.steps + 1, every)
            folder = out / "grades" / run.name
            points = graded_points(road, run, steps, folder, data, [0], STRENGTHS)
            curves.setdefault(name, []).append(points)
            result["runs"][run.name] = cost(run)
            if not floors:
                floors["random weights"] = [
                    grades(f"random:{run}", out / "grades" / f"random-{i}", data, [i], STRENGTHS)
                    for i in range(given.seeds)
                ]
                floor = grades("pixels:32", out / "grades" / "pixels", data, [0], STRENGTHS)
                floors["raw pixels"] = [floor]
            result |= {
                "curves": {"painted": curves},
                "random": {"painted": floors["random weights"]},
            }
            result["grades"] = floors | {n: [r[-1] for r in runs] for n, runs in curves.items()}
            (out / "result.json").write_text(json.dumps(result, indent=1))
            draw(result, out / "result.png")
            print(name, seed, points[-1], flush=True)
    for name, runs in result["grades"].items():
        for grade in (key for key in runs[0] if key != "step"):
            values = [r[grade] for r in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{name}: {grade} {statistics.mean(values):.1f} +- {spread:.1f} ({len(values)})")


if __name__ == "__main__":
    main()
