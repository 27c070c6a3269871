"""Judge our small backbones, random weights and raw pixels on real data: CIFAR-10 and CamVid.

    python benchmarks/judge_real_data.py run   --data DATA --work WORK [--only cifar10-probe]
    python benchmarks/judge_real_data.py table --work WORK

DATA holds cifar10/{train,test}.parquet (32 x 32 JPEG, column label) and
camvid/{train,val,test}.parquet (480 x 360 JPEG, column mask, id 11 unlabelled), in the Hugging Face
layout. `run` first makes the backbones, one of `procedural:` drawings and one of `pocket:`'s
images, each of 2,560 captions by SmolLM2 and 8,000 updates of `--preset tiny`; then each cell of
the table by one `synclr` command. What is finished is passed over and what was interrupted goes on,
so the work may come in pieces: `--only` names the rows, `--seeds` how many of each cell. `pocket:`
was taught with CIFAR-10's training images: there its backbone is at home.
`table` prints what is there as Markdown, with the commands.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

LONG = "--set train.steps=8000 --set train.warmup_steps=400"
SIXTY_FOUR = (
    "--set train.image_size=64 --set train.local_size=32 --set train.patch_size=16"  # 4 x 4 patches
)
DRAWN, PAINTED = "drawn", "painted"
# The two have patches of 16 pixels of 64, and of 8 of 32; weights drawn at random have them too.
VITS = (DRAWN, f"random:{DRAWN}", PAINTED, f"random:{PAINTED}")
MAKE = {
    DRAWN: (
        "captions -c in21k -n 2560 -o in21k.parquet",
        "render in21k.parquet --engine procedural: --set render.engine.size=64 -o drawn-images",
        f"train drawn-images -o {DRAWN} {SIXTY_FOUR} {LONG}",
    ),
    PAINTED: (
        "captions -p cifar -n 2560 -o things.parquet",
        "render things.parquet -p cifar -o painted-images",
        f"train painted-images -o {PAINTED} {LONG}",
    ),
}
FEW = 1000  # images of each class in the smaller CIFAR-10
CROPS = (
    "segment.image_size=128 segment.short_side=240 segment.stride=96 segment.scale=[0.75,1.5]"
    " segment.max_class_share=0.75 segment.photometric=true segment.ignore_index=11"
    " segment.batch_size=8"
)


@dataclass(frozen=True)
class Row:
    """One judge on one data set; a cell for each backbone and seed."""

    name: str
    what: str
    command: str
    data: str  # below WORK
    sets: str
    backbones: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)  # of the judge and the random weights; pixels need one

    def cells(self) -> list[tuple[str, int]]:
        """Return the backbone and seed of every cell."""
        return [
            (backbone, seed)
            for backbone in self.backbones
            for seed in (self.seeds[:1] if backbone.startswith("pixels:") else self.seeds)
        ]


ROWS = (
    Row("cifar10-probe", "CIFAR-10, linear probe", "linear-probe", "cifar10", "",
        (*VITS, "pixels:8", "pixels:16"), (0, 1, 2)),
    Row("cifar10-knn", "CIFAR-10, 20 nearest neighbours", "linear-probe", "cifar10",
        "linear-probe.protocol=knn", (*VITS, "pixels:8", "pixels:32")),
    Row("cifar10-finetune", "CIFAR-10, fine-tuned on 10,000", "finetune", "cifar10-few",
        "finetune.epochs=10 finetune.batch_size=64 finetune.crop_scale=[0.35,1.0]",
        VITS, (0, 1)),
    Row("camvid-upernet", "CamVid, UperNet, 1,000 updates", "segment", "camvid",
        f"{CROPS} segment.steps=1000 segment.warmup_steps=100 segment.validation_steps=500"
        " segment.checkpoint_steps=250",
        VITS, (0, 1)),
    Row("camvid-linear", "CamVid, backbone frozen, linear head", "segment", "camvid",
        f"{CROPS} segment.head=linear segment.steps=1000 segment.warmup_steps=100"
        " segment.lr=0.005 segment.validation_steps=500 segment.checkpoint_steps=250",
        VITS, (0, 1)),
)  # fmt: skip


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="names of rows; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="at most these of each cell")
    options = parser.parse_args()
    if options.what == "table":
        print(table(options.work))
        return
    if options.data is None:
        parser.error("run needs --data")
    options.work.mkdir(parents=True, exist_ok=True)
    link(options.data.resolve(), options.work)
    for backbone, lines in MAKE.items():
        if not (options.work / backbone / "backbone.safetensors").is_file():
            for line in lines:
                synclr(line.split(), options.work)
    for row in ROWS:
        if options.only and row.name not in options.only:
            continue
        for backbone, seed in sorted(row.cells(), key=lambda cell: cell[1]):
            if seed < options.seeds and not where(options.work, row, backbone, seed).is_file():
                synclr(arguments(row, backbone, seed), options.work)


def link(data: Path, work: Path) -> None:
    """Let `work` name the data sets, and make the smaller CIFAR-10: the first of each class."""
    for name in ("cifar10", "camvid"):
        if not (work / name).exists():
            (work / name).symlink_to(data / name)
    few = work / "cifar10-few"
    if not (few / "test.parquet").exists():
        few.mkdir(exist_ok=True)
        full = pq.read_table(work / "cifar10" / "train.parquet")
        seen: dict[int, int] = {}
        kept = []
        for i, label in enumerate(full["label"].to_pylist()):
            seen[label] = seen.get(label, 0) + 1
            if seen[label] <= FEW:
                kept.append(i)
        pq.write_table(full.take(pa.array(kept)), few / "train.parquet")
        (few / "test.parquet").symlink_to(data / "cifar10" / "test.parquet")


def arguments(row: Row, backbone: str, seed: int) -> list[str]:
    """Return one cell's command line after `synclr`."""
    sets = [word for each in row.sets.split() for word in ("--set", each)]
    out = where(Path(), row, backbone, seed).parent
    seeded = ["--seed", str(seed)] if seed else []
    return [row.command, backbone, "--data", row.data, *seeded, *sets, "-o", str(out)]


def where(work: Path, row: Row, backbone: str, seed: int) -> Path:
    """Return where a cell's report lies."""
    return work / "reports" / f"{row.name}-{backbone.replace(':', '-')}-{seed}" / "report.json"


def synclr(command: list[str], work: Path) -> None:
    """Run one command in `work`; stop if it fails."""
    print("$ synclr", shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "synclr_cli", *command], cwd=work, check=True)


def table(work: Path) -> str:
    """Return what is there as Markdown: grades, then the commands."""
    lines = [
        "| judge | metric, % | backbone | n | seed | grade [95 % interval] | floor | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    commands = []
    for row in ROWS:
        for backbone, seed in row.cells():
            path = where(work, row, backbone, seed)
            if not path.is_file():
                continue
            report = json.loads(path.read_text())
            low, high = report["interval"]
            floor = report.get("mean_iou_floor", report.get("most_frequent_class", 10.0))
            lines.append(
                f"| {row.what} | {report['metric']} | {backbone} | {report['n']} | {seed} |"
                f" {report['value']:.1f} [{low:.1f}, {high:.1f}] | {floor:.1f} |"
                f" {report['seconds'] / 60:.1f} |"
            )
        commands.append("synclr " + shlex.join(arguments(row, row.backbones[0], 0)))
    return "\n".join([*lines, "", *commands])


if __name__ == "__main__":
    main()
