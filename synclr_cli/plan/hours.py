"""How long the stages take, from FLOP and bytes against what GPUs, links and storage give."""

from __future__ import annotations

from dataclasses import dataclass

from timm.models import VisionTransformer

from synclr_cli.config import CaptionsConfig, PlanConfig, RenderConfig, TrainConfig
from synclr_cli.gpus import Gpu
from synclr_cli.learning import flops
from synclr_cli.plan import memory, sizes
from synclr_cli.plan.models import TERA, ImageModel, LanguageModel

DECODED_TOGETHER = {"vllm": 256}  # rows, as the engines have it
DECODED = 64
ENGINE_DEFAULTS = {"steps": 50, "guidance": 2.5}  # of diffusers:, as the engine has it
GIGABIT = 1e9 / 8  # bytes


@dataclass(frozen=True)
class Work:
    """What a stage computes, and how long it takes."""

    flop: float
    seconds: float
    bound: str  # what it waits for: compute | memory bandwidth | network | storage | measured


def captions(config: CaptionsConfig, plan: PlanConfig, gpu: Gpu, model: LanguageModel) -> Work:
    """Return the work of writing all captions on all GPUs.

    A step of the decoding reads the weights once for all rows together, and each row's keys.
    """
    rows = rows_together(config)
    context = plan.prompt_tokens + plan.caption_tokens / 2
    of_token = model.flops(context)
    drawn = config.count * plan.draws
    flop = drawn * (plan.prompt_tokens + plan.caption_tokens) * of_token
    compute = rows * of_token / (gpu.tflops * TERA)
    moved = (2 * model.weights + rows * model.cache_bytes(context)) / (gpu.bandwidth * TERA)
    steps = drawn * plan.caption_tokens / rows
    reading = drawn * plan.prompt_tokens * of_token / (gpu.tflops * TERA)
    seconds = (steps * max(compute, moved) + reading) / plan.captions_share / plan.gpus
    return Work(flop, seconds, "compute" if compute > moved else "memory bandwidth")


def rows_together(config: CaptionsConfig) -> int:
    """Return how many captions are decoded together."""
    scheme = config.engine.name.partition(":")[0]
    return config.engine.batch_size or DECODED_TOGETHER.get(scheme, DECODED)


def render(
    config: RenderConfig, plan: PlanConfig, gpu: Gpu, count: int, model: ImageModel | None
) -> Work | None:
    """Return the work of generating all views, None if nobody knows an image's FLOP."""
    if plan.image_tflop:
        of_image = plan.image_tflop * TERA
    elif model is not None:
        steps = config.engine.steps or ENGINE_DEFAULTS["steps"]
        guidance = config.engine.guidance
        guidance = ENGINE_DEFAULTS["guidance"] if guidance == -1 else guidance
        size = sizes.generated_size(config)
        of_image = model.image_flops(size, int(steps), guidance)
    else:
        return None
    flop = count * config.views * (1 + plan.redraws) * of_image
    seconds = flop / (gpu.tflops * TERA * plan.render_share * plan.gpus)
    return Work(flop, seconds, "compute")


def train(
    config: TrainConfig,
    plan: PlanConfig,
    gpu: Gpu,
    vit: VisionTransformer,
    image_bytes: float,
    speed: float | None = None,
) -> Work:
    """Return the work of all updates.

    Args:
        config, plan, gpu, vit: of the run.
        image_bytes: read for each image of a batch.
        speed: model FLOP/s of one device as measured, None: a share of the peak.
    """
    flop = flops.step_flops(config, vit)
    if speed is None:
        again = recomputed(config, plan, vit)
        compute = (flop + again) / (plan.gpus * gpu.tflops * TERA * plan.train_share)
    else:
        compute = flop / (plan.gpus * speed)
    network = averaging_seconds(config, plan, gpu, vit)
    images = config.captions_per_batch * config.views
    storage = images * image_bytes / (plan.storage_gbit * GIGABIT)
    parts = {"compute": compute, "network": network, "storage": storage - compute - network}
    step = max(compute + network, storage)
    return Work(config.steps * flop, config.steps * step, max(parts, key=lambda k: parts[k]))


def recomputed(config: TrainConfig, plan: PlanConfig, vit: VisionTransformer) -> float:
    """Return the FLOP that micro-batches compute a second time in an update."""
    whole = memory.images_of_rank(config, plan.gpus)
    return flops.forward_flops(config, vit) if 0 < config.micro_batch < whole else 0.0


def averaging_seconds(
    config: TrainConfig, plan: PlanConfig, gpu: Gpu, vit: VisionTransformer
) -> float:
    """Return the seconds an update waits for the mean of the gradients.

    Of n ranks a ring sends 2 (n - 1) / n of the gradients' bytes over every link, and over every
    node's network.
    """
    n = plan.gpus
    if n == 1:
        return 0.0
    of_gradients = 4.0 * memory.Weights.of(config, vit).student
    link = gpu.link * 1e9
    if n > plan.gpus_per_node:
        link = min(link, plan.network_gbit * GIGABIT)
    return 2 * (n - 1) / n * of_gradients / (link * plan.link_share) * (1 - plan.overlap)
