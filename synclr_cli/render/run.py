"""`synclr render`: captions -> images, several of each, in Parquet.

    captions -> parts of `captions_per_part` captions -> batches -> engine -> gate -> encoded
    rows -> part-00000.parquet ... (and _rejected/) -> _manifest.json

An image depends on (render.seed, caption_id, view) and the engine, never on batches, processes,
shards or where the last run stopped. A part is the unit of resuming and of batching. While the
engine generates, the images before are encoded by other threads, and the part before is written by
another; an engine that says it is `parallel` runs in processes instead. Of the captions only those
of a few parts are in memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from synclr_cli import config as configs, console, executors
from synclr_cli.config import RenderConfig
from synclr_cli.data import artifacts, image_facts
from synclr_cli.data.shards import ShardedDataset
from synclr_cli.render import meaning
from synclr_cli.render.captions_reader import CaptionsReader
from synclr_cli.render.part import LARGEST_CLASS, Plan
from synclr_cli.render.parts import ImageParts


def run(config: RenderConfig, captions: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Generate images of all captions into the images/2 folder `out`, and return it.

    A folder that was finished with fewer views or captions is continued: what it has is kept.
    Of N jobs that share the folder each generates every N-th part (`config.shard`); whichever ends
    last writes the manifest.

    Args:
        captions: a captions/2 folder, or anybody's file of captions (`captions_files`).

    Raises:
        DataError: no captions, or some that cannot be rendered.
        UsageError: `out` was made with other settings, or cannot be written.
        EngineError: the engine is not there or gave up; the disk is full.
    """
    # --- open
    reader = CaptionsReader(captions, LARGEST_CLASS)
    plan = Plan(reader, config)
    header = artifacts.Header(
        schema="images",
        config=configs.recipe(config),
        engine=config.engine.name,
        seed=config.seed,
        parents=(reader.parent,),
    )
    dataset = ShardedDataset(
        out,
        "images",
        header,
        varying=("views",),
        sidecars=(image_facts.REJECTED,),
        require_continuable=_require_continuable,
    )
    if not overwrite and dataset.state() == "finished":
        return out

    with dataset.claim(overwrite=overwrite, shard=config.shard):
        # --- build, loop
        todo = plan.todo(dataset)
        if todo:
            meaning.require_known(config.engine, reader.rows(0, meaning.CAPTIONS))
            _ = plan.class_ids  # looked up once, here, whoever makes the parts
            parts = ImageParts(dataset, plan)
            total = reader.count * config.views
            left = min(len(todo) * config.captions_per_part * config.views, total)
            with console.progress("render", total, done=total - left, unit="images") as meter:
                executors.run(
                    todo, parts, config.executor, meter,
                    written=parts.take, places=[dataset.work, captions],
                )  # fmt: skip

        # --- write
        if not dataset.finish(plan.parts, partial(plan.facts, source=captions.name)):
            console.note(f"{out} is not whole yet: other parts of it are for the other jobs")
    return out


def _require_continuable(begun: artifacts.Header, header: artifacts.Header, folder: Path) -> None:
    """Refuse to continue what other settings began; more views and more captions are welcome.

    Raises:
        UsageError: names the settings that differ.
    """
    views = begun.config.get("views", 0)
    config = dict(header.config)
    if views <= config["views"]:
        config["views"] = views
    same_parents = replace(header, config=config, parents=begun.parents)
    artifacts.require_same("render", begun, same_parents, folder)
