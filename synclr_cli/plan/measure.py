"""`--measure`: a few parts of captions and images and a few updates, timed on this machine.

The commands run as they do, small, in a folder that is removed. Start-up is left out: a rate is
that between the files a command writes, and the speed of training that of its lines of metrics.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from synclr_cli import console
from synclr_cli.config import PlanConfig
from synclr_cli.errors import UsageError
from synclr_cli.plan import hours
from synclr_cli.plan.recipe import STAGES, Recipe

Synclr = Callable[[list[str]], str]
FEWEST_SECONDS = 1e-4  # between two files: the clocks of file systems are coarse


@dataclass(frozen=True)
class Measured:
    """Speeds and sizes seen on this machine."""

    device: str
    captions_per_s: float
    caption_bytes: float  # of a row
    images_per_s: float
    image_bytes: float  # of a row
    train_flops: float  # model FLOP/s

    def json(self) -> dict[str, Any]:
        """Return it for the report."""
        return asdict(self)


def measure(recipe: Recipe, plan: PlanConfig, sets: Sequence[str], synclr: Synclr) -> Measured:
    """Time a few batches of each stage of a recipe.

    Args:
        recipe: of all three stages.
        plan: how many parts and updates.
        sets: the `--set` items that the recipe was read with.
        synclr: runs one command line and returns what it writes to stdout.

    Raises:
        UsageError: the preset lacks a stage.
    """
    for stage in STAGES:
        if getattr(recipe, stage) is None:
            raise UsageError(
                f"--measure with preset {recipe.preset}, which has no table {stage}",
                do="plan without --measure, or name another --preset",
            )
    assert recipe.captions and recipe.train
    together = hours.rows_together(recipe.captions)
    parts, steps = plan.measured_parts, plan.measured_steps
    captions = min(plan.measured_captions, together) * parts
    batch = min(recipe.train.captions_per_batch, captions)
    changes: dict[str, dict[str, Any]] = {
        "captions": {"count": together * parts, "captions_per_part": together},
        "render": {"captions_per_part": captions // parts},
        "train": {
            "captions_per_batch": batch, "steps": steps, "warmup_steps": 0, "log_steps": 2,
            "checkpoint_steps": steps, "backbone_steps": 0, "knn_data": "", "trackers": [],
            "stop_after_minutes": 0.0,
        },
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="synclr-plan-") as name:
        folders = {stage: Path(name) / stage for stage in STAGES}
        source: list[str] = []
        for stage in STAGES:
            console.note(f"measuring: synclr {stage}")
            own = [f"{stage}.{key}={json.dumps(value)}" for key, value in changes[stage].items()]
            flags = [f"--set={item}" for item in (*sets, *own)]
            synclr([stage, *source, "-o", str(folders[stage]), "-p", recipe.preset, *flags])
            source = [str(folders[stage])]
            if stage == "captions":
                source = [str(_first(folders[stage], captions))]
        captions_per_s, caption_bytes = rate(folders["captions"])
        images_per_s, image_bytes = rate(folders["render"])
        return Measured(
            _device(), captions_per_s, caption_bytes, images_per_s, image_bytes,
            train_speed(folders["train"]),
        )  # fmt: skip


def rate(folder: Path) -> tuple[float, float]:
    """Return rows a second, and bytes of a row, of a folder of parts written one after another.

    Bytes are those of the columns; a part's footer is counted in `sizes`.
    The median of the times between two files leaves out start-up and the last parts, which a
    pipeline writes together.
    """
    import pyarrow.parquet as pq

    paths = _parts(folder)
    footers = [pq.read_metadata(path) for path in paths]
    rows = [footer.num_rows for footer in footers]
    times = sorted(path.stat().st_mtime_ns for path in paths)
    seconds = statistics.median(later - sooner for sooner, later in pairwise(times)) / 1e9
    size = sum(
        footer.row_group(group).column(column).total_compressed_size
        for footer in footers
        for group in range(footer.num_row_groups)
        for column in range(footer.num_columns)
    )
    return statistics.median(rows) / max(seconds, FEWEST_SECONDS), size / sum(rows)


def _first(folder: Path, captions: int) -> Path:
    """Write a file of a folder's first captions beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(path, columns=["caption", "concept"]) for path in _parts(folder)]
    path = folder.with_suffix(".parquet")
    pq.write_table(pa.concat_tables(tables).slice(0, captions), path)
    return path


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def train_speed(run: Path) -> float:
    """Return the model FLOP/s of a run by its lines of metrics but the first, which warms up."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [json.loads(line)["model_tflop_per_s"] for line in lines]
    return float(statistics.median(speeds[1:])) * 1e12


def _device() -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU of {torch.get_num_threads()} threads"
