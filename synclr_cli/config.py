"""The settings of every stage: one frozen dataclass each, checked when it is built.

    fields           what a field says about itself: type, bound, unit, meaning; the one check
    config_make      captions, render, train
    config_executor  where captions and images are made, and evaluations run
    config_evaluate  linear-probe, finetune, segment
    config_plan      plan, which makes no artifact and has no table in a preset
    presets          TOML files of them: `defaults < preset table < flags < --set`

Defaults are the paper's values for ViT-B/16 with the embedded engines. Keys are paths within a
stage: `engine.steps`. Those marked `running` say how a machine runs the work, not what it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, cast

from synclr_cli.config_evaluate import FinetuneConfig, LinearProbeConfig, SegmentConfig
from synclr_cli.config_make import (
    DTYPES,
    PRECISIONS,
    TRACKERS,
    CaptionEngineConfig,
    CaptionsConfig,
    RenderConfig,
    RenderEngineConfig,
    TrainConfig,
)
from synclr_cli.config_plan import PlanConfig
from synclr_cli.errors import UsageError
from synclr_cli.fields import Checked, Setting, info, shown, types_of

__all__ = [
    "DTYPES",
    "PRECISIONS",
    "STAGES",
    "TABLES",
    "TRACKERS",
    "CaptionEngineConfig",
    "CaptionsConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "LinearProbeConfig",
    "PlanConfig",
    "RenderConfig",
    "RenderEngineConfig",
    "SegmentConfig",
    "StageConfig",
    "TrainConfig",
    "build",
    "differing_keys",
    "flatten",
    "keys",
    "recipe",
    "unknown_key",
]

StageConfig = (
    CaptionsConfig
    | RenderConfig
    | TrainConfig
    | LinearProbeConfig
    | FinetuneConfig
    | SegmentConfig
    | PlanConfig
)

EvaluationConfig = LinearProbeConfig | FinetuneConfig | SegmentConfig

STAGES: dict[str, type[StageConfig]] = {
    "captions": CaptionsConfig,
    "render": RenderConfig,
    "train": TrainConfig,
    "linear-probe": LinearProbeConfig,
    "finetune": FinetuneConfig,
    "segment": SegmentConfig,
}
# What `--set` knows: the stages, which presets hold, and the settings of estimates.
TABLES: dict[str, type[StageConfig]] = {**STAGES, "plan": PlanConfig}

_ABSENT = object()


def keys(stage: str) -> dict[str, Setting]:
    """Return every key path of a stage with what its field says about itself."""
    return {prefix + name: info(owner, name) for prefix, name, owner in _walk(TABLES[stage])}


def flatten(config: Checked) -> dict[str, Any]:
    """Return a config's values by key path; the order is the dataclass's."""
    flat: dict[str, Any] = {}
    for prefix, name, _ in _walk(type(config)):
        owner = vars(config)[prefix[:-1]] if prefix else config
        value = vars(owner)[name]
        flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def recipe(config: StageConfig) -> dict[str, Any]:
    """Return what a header says of a config: its values but for the running keys."""
    known = keys(config.TABLE)
    return {key: value for key, value in flatten(config).items() if not known[key].running}


def build(stage: str, values: Mapping[str, Any]) -> StageConfig:
    """Build a stage's config from values by key path, the rest by default.

    Raises:
        UsageError: unknown key (the nearest one is named), wrong type, value out of range.
    """
    known = keys(stage)
    for key in values:
        if key not in known:
            raise unknown_key(stage, key)
    return cast(StageConfig, _construct(TABLES[stage], values))


def differing_keys(stage: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the keys, `stage.key`, in which two flat configs of a stage are not the same recipe.

    Running keys may differ, and a key that grows; where a file lies is no difference either.
    """
    known = keys(stage)
    differing = []
    for key in dict.fromkeys([*new, *old]):
        setting = known.get(key)
        if setting and (setting.running or setting.grows):
            continue
        values = [config.get(key, _ABSENT) for config in (old, new)]
        if setting and setting.same:
            values = [setting.same(value) if isinstance(value, str) else value for value in values]
        if values[0] != values[1]:
            differing.append(f"{stage}.{key}")
    return differing


def unknown_key(stage: str, key: str) -> UsageError:
    """Return the error for a key that no config has, with the nearest that exists."""
    known = list(keys(stage))
    # "lr" means "peak_lr" more likely than what spelling alone finds.
    near = [k for k in known if key.split(".")[-1] in k.split(".")[-1].split("_")][:2]
    near = near or difflib.get_close_matches(key[:99], known, n=1, cutoff=0.5)
    names = " or ".join(f"{stage}.{k}" for k in near)
    hint = f"did you mean {names}?" if near else f"synclr {stage} --print-config lists its keys"
    return UsageError(f"unknown key {stage}.{key if len(key) < 60 else shown(key)}", do=hint)


def _walk(config_type: type[Checked], prefix: str = "") -> Iterator[tuple[str, str, type[Checked]]]:
    """Yield (prefix, name, owner) of every setting, those of a nested config in its place."""
    for name, hint in types_of(config_type).items():
        if isinstance(hint, type) and issubclass(hint, Checked):
            yield from _walk(hint, f"{name}.")
        else:
            yield prefix, name, config_type


def _construct(config_type: type[Checked], values: Mapping[str, Any]) -> Checked:
    arguments: dict[str, Any] = {}
    for name, hint in types_of(config_type).items():
        if isinstance(hint, type) and issubclass(hint, Checked):
            head = f"{name}."
            inner = {k.removeprefix(head): v for k, v in values.items() if k.startswith(head)}
            arguments[name] = _construct(hint, inner)
        elif name in values:
            arguments[name] = values[name]
    return config_type(**arguments)
