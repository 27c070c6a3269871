"""`synclr plan`: rows, bytes, memory and hours of a recipe, and what of it would not fit.

preset, --set --recipe--> counts --sizes, hours, memory--> estimate --report--> table or JSON
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import VisionTransformer

from synclr_cli import gpus
from synclr_cli.config import CaptionsConfig, PlanConfig, RenderConfig, TrainConfig
from synclr_cli.gpus import Gpu
from synclr_cli.learning import backbone
from synclr_cli.plan import fit, hours, memory, models, sizes
from synclr_cli.plan.hours import Work
from synclr_cli.plan.measure import Measured
from synclr_cli.plan.recipe import STAGES, Recipe

Stage = dict[str, Any]


def run(recipe: Recipe, plan: PlanConfig, measured: Measured | None = None) -> dict[str, Any]:
    """Return the estimate as one JSON object; `report.rows` makes a table of it.

    Args:
        recipe: the stages.
        plan: the machine, and what is assumed.
        measured: speeds and bytes of the machine at hand, instead of those assumed.

    Raises:
        UsageError: a GPU that is not listed; a ViT that cannot be built.
        DataError: a model's folder that does not describe it.
    """
    name = gpus.name_of(plan.gpu)
    gpu: Gpu | None = gpus.GPUS[name]
    if measured:
        name, gpu = measured.device, gpus.of_device(measured.device)
    if gpu is None:  # as a CPU: nothing is known of its memory
        gpu = Gpu(math.inf, math.inf, math.inf, plan.network_gbit / 8)
    usable = gpu.memory_gb * 1e9 * plan.memory_share
    stages: dict[str, Stage] = {}
    needs: dict[str, dict[str, float]] = {}
    problems: list[fit.Problem] = []
    if recipe.captions:
        stages["captions"], needs["captions"] = _captions(recipe.captions, plan, gpu, measured)
    if recipe.render:
        stages["render"], needs["render"] = _render(
            recipe.render, recipe.count, plan, gpu, measured
        )
    if recipe.train:
        vit = build(recipe.train)
        stages["train"] = _train(recipe, recipe.train, plan, gpu, vit, measured)
        of_rank = memory.of_rank(recipe.train, vit, plan.gpus)
        needs["train"] = {**vars(of_rank), "total": of_rank.total()}
        problems += fit.train(recipe.train, recipe.render, recipe.count, plan.gpus, vit)
        if of_rank.total() > usable:
            problems.append(fit.memory_problem(recipe.train, vit, plan.gpus, usable, name))
    problems += fit.models(needs, usable, name)
    return {
        "preset": recipe.preset,
        "gpus": plan.gpus,
        "gpu": name,
        "measured": measured.json() if measured else None,
        **stages,
        "memory": {"usable": usable if math.isfinite(usable) else None, **needs},
        "total": _total(stages, plan),
        "problems": [problem._asdict() for problem in problems],
    }


def build(config: TrainConfig) -> VisionTransformer:
    """Return the config's ViT on the meta device: shapes without weights."""
    with torch.device("meta"):
        return backbone.build(
            config.arch,
            image_size=config.image_size,
            patch_size=config.patch_size,
            depth=config.depth,
        )


def _captions(
    config: CaptionsConfig, plan: PlanConfig, gpu: Gpu, measured: Measured | None
) -> tuple[Stage, dict[str, float]]:
    disk = sizes.captions(config, measured.caption_bytes if measured else None)
    model = models.language_model(config, plan)
    work = hours.captions(config, plan, gpu, model) if model else None
    needs = {}
    if model:
        context = plan.prompt_tokens + plan.caption_tokens
        rows = hours.rows_together(config)
        needs = {"weights": 2 * model.weights, "cache": rows * model.cache_bytes(context)}
    rate = measured.captions_per_s if measured else None
    return _making(disk, work, rate, plan.gpus), needs


def _render(
    config: RenderConfig, count: int, plan: PlanConfig, gpu: Gpu, measured: Measured | None
) -> tuple[Stage, dict[str, float]]:
    disk = sizes.images(config, count, measured.image_bytes if measured else None)
    model = models.image_model(config)
    work = hours.render(config, plan, gpu, count, model)
    rate = measured.images_per_s if measured else None
    needs = {"weights": 2 * model.weights} if model else {}
    return _making(disk, work, rate, plan.gpus), needs


def _making(disk: sizes.OnDisk, work: Work | None, rate: float | None, gpus: int) -> Stage:
    """Return what is told of captions or render; no hours where the model's size is unknown."""
    seconds, bound = (work.seconds, work.bound) if work else (None, None)
    if rate is not None:  # rows/s of one device
        seconds, bound = disk.rows / rate / gpus, "measured"
    return {
        "rows": disk.rows,
        "parts": disk.parts,
        "bytes": round(disk.bytes),
        "flop": work.flop if work else None,
        "hours": None if seconds is None else seconds / 3600,
        "bound": bound,
    }


def _train(
    recipe: Recipe,
    config: TrainConfig,
    plan: PlanConfig,
    gpu: Gpu,
    vit: VisionTransformer,
    measured: Measured | None,
) -> Stage:
    assumed = sizes.image_bytes(recipe.render or RenderConfig())
    of_image = measured.image_bytes if measured else assumed
    work = hours.train(config, plan, gpu, vit, of_image, measured.train_flops if measured else None)
    weights = memory.Weights.of(config, vit)
    seen = config.steps * config.captions_per_batch
    return {
        "steps": config.steps,
        "images": seen * config.views,
        "epochs": seen / recipe.count,
        "weights": weights.vit,
        "bytes": round(sizes.run(config, weights.vit, weights.student, weights.teacher)),
        "flop": work.flop,
        "seconds_per_step": work.seconds / config.steps,
        "read_bytes_per_s": seen * config.views * of_image / work.seconds,
        "hours": work.seconds / 3600,
        "bound": work.bound,
    }


def _total(stages: dict[str, Stage], plan: PlanConfig) -> Stage:
    total = sum(stage["hours"] or 0.0 for stage in stages.values())
    return {
        "bytes": sum(stage["bytes"] for stage in stages.values()),
        "hours": total,
        "gpu_hours": total * plan.gpus,
        "price": total * plan.gpus * plan.price if plan.price else None,
        "without": [name for name in STAGES if name in stages and stages[name]["hours"] is None],
    }
