"""The stages of a preset that are planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synclr_cli import config as configs, engines, presets
from synclr_cli.config import CaptionsConfig, RenderConfig, TrainConfig
from synclr_cli.errors import UsageError

STAGES = ("captions", "render", "train")


@dataclass(frozen=True)
class Recipe:
    """The stages of a preset; those it has no table of are None."""

    preset: str
    count: int  # captions
    captions: CaptionsConfig | None
    render: RenderConfig | None
    train: TrainConfig | None


def read(preset: str, sets: Sequence[str]) -> Recipe:
    """Read a preset's stages as `--set` changes them.

    Raises:
        UsageError: as `presets.resolve`; no stage to plan, or nothing says how many captions.
    """
    tables = set(presets.read(preset).values) | {_table(item) for item in sets}
    stages: dict[str, configs.StageConfig] = {
        stage: presets.resolve(stage, preset=preset, sets=sets).config
        for stage in STAGES
        if stage in tables
    }
    if not stages:
        raise UsageError(
            f"preset {preset} has no table {', '.join(STAGES)}: nothing to plan",
            do="name another --preset",
        )
    captions, render, train = (stages.get(stage) for stage in STAGES)
    if not isinstance(captions, CaptionsConfig):
        raise UsageError(
            f"preset {preset} has no table captions, so nothing says how many there are",
            do="add --set captions.count=N",
        )
    engines.require_scheme("caption", captions.engine.name)
    assert render is None or isinstance(render, RenderConfig)
    assert train is None or isinstance(train, TrainConfig)
    if render:
        engines.require_scheme("image", render.engine.name)
    return Recipe(preset, captions.count, captions, render, train)


def _table(item: str) -> str:
    return item.partition("=")[0].partition(".")[0].strip()
