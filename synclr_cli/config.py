"""The settings of every stage: one frozen dataclass each, checked when it is built.

A stage's settings come from `defaults < preset table < flags < --set` (`presets.py` joins them).
Defaults are the paper's values for ViT-B/16 (`# Table 11` ... name their source in the shipped
presets) with the embedded engines. Units are in the names; sizes are pixels unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from synclr_cli import checks
from synclr_cli.errors import UsageError


@dataclass(frozen=True)
class CaptionEngineConfig:
    """Which language model completes the prompts, and how it samples."""

    name: str = "smollm2:"  # scheme:target
    temperature: float = 0.8
    top_p: float = 0.9
    max_new_tokens: int = 100
    batch_size: int = 64  # prompts decoded together
    dtype: str = "auto"  # auto: bfloat16 where the hardware multiplies it faster
    options: dict[str, Any] = field(default_factory=dict)  # for engines of other packages

    def __post_init__(self) -> None:
        key = "captions.engine"
        checks.scheme(f"{key}.name", self.name)
        checks.at_least(f"{key}.temperature", self.temperature, 0)
        checks.within(f"{key}.top_p", self.top_p, 0, 1, low_open=True)
        checks.at_least(f"{key}.max_new_tokens", self.max_new_tokens, 1)
        checks.at_least(f"{key}.batch_size", self.batch_size, 1)
        checks.one_of(f"{key}.dtype", self.dtype, DTYPES)


@dataclass(frozen=True)
class CaptionsConfig:
    """Words -> captions."""

    concepts: str = "in21k"  # a source name, a word list (.txt .csv .parquet), or NAME:WEIGHT,...
    concept_cap: float = 1.0  # highest share of captions that one concept may have
    count: int = 1000  # captions
    seed: int = 0
    examples: int = 3  # demonstrations before each completion
    examples_block: int = 256  # consecutive ids that share them; 1 draws them anew for each caption
    examples_file: str = ""  # TOML of own demonstrations; "" for the shipped ones
    backgrounds: str = "hand"  # hand-written lists, "model": the engine lists them per concept
    quality_gate: bool = True  # refuse captions with a fault; false refuses empty ones only
    max_similarity: float = 1.0  # of a caption to an earlier one nearby; 1 refuses only equal ones
    attempts: int = 4  # draws of a caption the quality gate refuses, before a rule writes it
    shard: str = "1/1"  # I/N makes the I-th of N files; every N-th part belongs to it
    share_c: float = 0.44  # of captions about objects: concept alone
    share_c_bg: float = 0.45  # concept and background
    share_c_rel: float = 0.11  # concept and positional relation
    captions_per_part: int = 1024  # the unit of resuming
    engine: CaptionEngineConfig = field(default_factory=CaptionEngineConfig)

    def __post_init__(self) -> None:
        checks.within("captions.concept_cap", self.concept_cap, 0, 1, low_open=True)
        checks.at_least("captions.count", self.count, 1)
        checks.seed("captions.seed", self.seed)
        checks.at_least("captions.examples", self.examples, 0)
        checks.at_least("captions.examples_block", self.examples_block, 1)
        checks.one_of("captions.backgrounds", self.backgrounds, ("hand", "model"))
        checks.within("captions.max_similarity", self.max_similarity, 0, 1, low_open=True)
        checks.at_least("captions.attempts", self.attempts, 1)
        checks.shard("captions.shard", self.shard)
        checks.at_least("captions.captions_per_part", self.captions_per_part, 1)
        shares = (self.share_c, self.share_c_bg, self.share_c_rel)
        for name, share in zip(("share_c", "share_c_bg", "share_c_rel"), shares, strict=True):
            checks.within(f"captions.{name}", share, 0, 1)
        if abs(sum(shares) - 1) > 1e-6:
            raise UsageError(
                "captions.share_c + share_c_bg + share_c_rel", got=f"{sum(shares):g}", expected=1
            )


@dataclass(frozen=True)
class RenderEngineConfig:
    """Which text-to-image model paints the captions, and how."""

    name: str = "pocket:"  # scheme:target
    guidance: float = 2.5  # classifier-free guidance scale
    steps: int = 0  # denoising steps; 0: the engine's own, pocket: 10, diffusers: 50
    # A name of the engine's, or "own": the pipeline's; "auto": pocket: own, diffusers: ddim, or own
    # for flows.
    scheduler: str = "auto"
    # Pixels painted, before the reduction to render.stored_size; 0: the engine's own, pocket: 32,
    # procedural: 64, diffusers: 512.
    size: int = 0
    batch_size: int = 16  # pictures painted together
    dtype: str = "auto"
    variant: str = ""  # of the weights' files, such as "fp16"
    revision: str = ""  # branch, tag or commit on the hub
    negative_prompt: str = ""  # of the unconditional half
    safety_checker: bool = False  # load the pipeline's own; what it objects to is rejected
    compile: bool = False  # torch.compile of the denoiser
    vae_slicing: bool = False  # decode one picture after the other
    vae_tiling: bool = False  # decode in overlapping tiles
    offload: bool = False  # keep on the GPU only the model that works
    options: dict[str, Any] = field(default_factory=dict)  # for engines of other packages

    def __post_init__(self) -> None:
        key = "render.engine"
        checks.scheme(f"{key}.name", self.name)
        checks.within(f"{key}.guidance", self.guidance, 0, 100)
        checks.within(f"{key}.steps", self.steps, 0, 1000)
        checks.at_least(f"{key}.size", self.size, 8 if self.size else 0)
        checks.at_least(f"{key}.batch_size", self.batch_size, 1)
        checks.one_of(f"{key}.dtype", self.dtype, DTYPES)

    def filled(self, **own: int | str) -> RenderEngineConfig:
        """Return these settings with an engine's own for those that are left to it."""
        left: dict[str, Any] = {
            key: value for key, value in own.items() if getattr(self, key) in (0, "auto")
        }
        return replace(self, **left)


@dataclass(frozen=True)
class RenderConfig:
    """Captions -> pictures, several per caption."""

    views: int = 4  # pictures of each caption
    seed: int = 0
    stored_size: int = 256
    image_format: str = "jpeg"
    quality: int = 95  # of jpeg and webp, 1 to 100
    masks: bool = True  # keep the pixel masks, if the engine yields them
    captions_per_part: int = 256  # the unit of resuming, and one Parquet file
    redraws: int = 3  # times a rejected view is painted again, from another seed
    least_entropy: float = 2.0  # bits of a view's grey levels; less is rejected; 0: any passes
    duplicate_bits: int = 3  # views of a caption are duplicates up to so many of 64; -1: never
    least_views: int = 0  # captions that end with fewer are set aside; 0: fewer than `views`
    score_model: str = ""  # a CLIP-like model's folder or hub id: scores picture against caption
    least_score: float = -1.0  # cosine similarity; less is rejected; -1: any passes
    shard: str = "1/1"  # I/N: of N jobs that share the folder, this is the I-th
    engine: RenderEngineConfig = field(default_factory=RenderEngineConfig)

    def __post_init__(self) -> None:
        checks.at_least("render.views", self.views, 1)
        checks.seed("render.seed", self.seed)
        checks.at_least("render.stored_size", self.stored_size, 8)
        checks.one_of("render.image_format", self.image_format, ("jpeg", "webp", "png"))
        checks.within("render.quality", self.quality, 1, 100)
        checks.at_least("render.captions_per_part", self.captions_per_part, 1)
        checks.at_least("render.redraws", self.redraws, 0)
        checks.within("render.least_entropy", self.least_entropy, 0, 8)
        checks.within("render.duplicate_bits", self.duplicate_bits, -1, 64)
        checks.within("render.least_views", self.least_views, 0, self.views)
        checks.within("render.least_score", self.least_score, -1, 1)
        if self.least_score > -1 and not self.score_model:
            raise UsageError(
                "render.least_score without render.score_model",
                got=self.least_score,
                do="name the model that scores, such as openai/clip-vit-base-patch32",
            )
        checks.shard("render.shard", self.shard)


@dataclass(frozen=True)
class TrainConfig:
    """Pictures -> backbone: multi-positive contrast, masked patches, EMA teacher, multi-crop."""

    # --- model
    arch: str = "vit_base_patch16_224"  # a ViT of timm
    patch_size: int = 0  # 0: the arch's own
    depth: int = 0  # blocks; 0: the arch's own
    init: str = ""  # weights to start from: timm:NAME, a .safetensors, .pth or run; "": drawn
    drop_path: float = 0.1  # student only
    head_norm: str = "batch"  # batch: MoCo v3 as in the paper; layer: the released code
    head_hidden: int = 4096
    head_out: int = 256
    patch_head_hidden: int = 2048
    patch_head_bottleneck: int = 256
    prototypes: int = 65536
    # --- data
    captions_per_batch: int = 2048  # over all ranks
    views: int = 4  # pictures of each caption in a batch
    global_crops: int = 1  # of each picture; each has local crops of its own
    image_size: int = 224  # global crop
    local_size: int = 96
    local_crops: int = 4  # of each picture; 0: no multi-crop
    global_scale: tuple[float, float] = (0.32, 1.0)  # crop area / picture area
    local_scale: tuple[float, float] = (0.08, 0.32)
    downsample: float = 0.05  # probability of StableRep's "downsample" step
    jitter: float = 0.8  # probability of changing brightness, contrast, saturation and hue
    grey: float = 0.2  # probability of losing the colours
    blur: float = 1.0  # factor on the recipe's probabilities of a blur; 0: none
    solarise: float = 0.2  # probability, of global crops under the recipe that is seldom blurred
    workers: int = 4  # loader processes per rank
    # --- objective
    objective: str = "contrast"  # cross-entropy: a linear classifier of the classes, as supervised
    positives: str = "caption"  # what makes a class: caption | concept | image (SimCLR)
    teacher: bool = True  # false: candidates are the student's own, both sides trained (StableRep)
    temperature: float = 0.08
    patch_weight: float = 1.0  # of the iBOT term; 0: no masked patches
    mask_probability: float = 0.5  # share of the pictures that are masked
    mask_ratio: float = 0.5  # share of the patches masked in those
    mask_first: bool = False  # always a caption's first pictures, as the released command has it
    student_temperature: float = 0.1  # of the patch softmax
    teacher_temperature: float = 0.04  # at the first step
    teacher_temperature_end: float = 0.07
    teacher_temperature_steps: int = 4000
    sinkhorn_iterations: int = 3
    ema: float = 0.994  # at the first step
    ema_end: float = 1.0
    # --- optimisation
    steps: int = 500_000
    warmup_steps: int = 80_000
    peak_lr: float = 2e-3
    end_lr: float = 0.0
    weight_decay: float = 0.04
    weight_decay_end: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.999
    clip_grad: float = 0.0  # largest gradient norm; 0: no clipping
    # --- running
    seed: int = 0
    precision: str = "auto"  # auto: bfloat16 autocast where the hardware has it
    checkpoint_steps: int = 1000
    micro_batch: int = 0  # pictures the ViTs see at a time, per rank; 0: all; changes no result
    compile: bool = False  # torch.compile the blocks; on a GPU, a CPU has its own way
    shard_optimizer: bool = False  # each rank keeps a share of AdamW's moments; changes no result
    keep_checkpoints: int = 2
    log_steps: int = 50
    backbone_steps: int = 0  # keep the backbone of every so many steps; 0: only the last
    knn_data: str = ""  # labelled pictures to grade the teacher on by k-NN on the way; "": none
    knn_steps: int = 1000  # updates between two grades
    knn_pictures: int = 2000  # at most so many of either split
    skip_nonfinite: int = 0  # updates that may be skipped for a loss that is not finite; then: stop
    trackers: tuple[str, ...] = ()  # tensorboard | wandb | trackio, beside metrics.jsonl
    stop_after_minutes: float = 0.0  # save, stop and exit 0 after this long; 0: never

    def __post_init__(self) -> None:
        for name in ("jitter", "grey", "blur", "solarise"):
            checks.within(f"train.{name}", getattr(self, name), 0, 1)
        for name in ("downsample", "mask_probability", "mask_ratio", "ema", "ema_end"):
            checks.within(f"train.{name}", getattr(self, name), 0, 1)
        for name in ("drop_path", "beta1", "beta2"):
            checks.within(f"train.{name}", getattr(self, name), 0, 1, high_open=True)
        for name in ("head_hidden", "head_out", "patch_head_hidden", "patch_head_bottleneck"):
            checks.at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("prototypes", "captions_per_batch", "views", "steps", "sinkhorn_iterations"):
            checks.at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("checkpoint_steps", "keep_checkpoints", "log_steps", "global_crops"):
            checks.at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("knn_steps", "knn_pictures"):
            checks.at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("backbone_steps", "skip_nonfinite"):
            checks.at_least(f"train.{name}", getattr(self, name), 0)
        for name in ("image_size", "local_size"):
            checks.at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("patch_size", "depth", "local_crops", "workers", "warmup_steps"):
            checks.at_least(f"train.{name}", getattr(self, name), 0)
        checks.seed("train.seed", self.seed)
        for name in ("peak_lr", "end_lr", "weight_decay", "weight_decay_end", "patch_weight"):
            checks.at_least(f"train.{name}", getattr(self, name), 0)
        for name in ("clip_grad", "stop_after_minutes", "teacher_temperature_steps", "micro_batch"):
            checks.at_least(f"train.{name}", getattr(self, name), 0)
        for name in ("temperature", "student_temperature", "teacher_temperature"):
            checks.within(f"train.{name}", getattr(self, name), 0, 100, low_open=True)
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise UsageError(f"train.{name}", got=[low, high], expected="0 < low <= high <= 1")
        checks.one_of("train.head_norm", self.head_norm, ("batch", "layer"))
        checks.one_of("train.objective", self.objective, ("contrast", "cross-entropy"))
        checks.one_of("train.positives", self.positives, ("caption", "concept", "image"))
        for tracker in self.trackers:
            checks.one_of("train.trackers", tracker, TRACKERS)
        checks.one_of("train.precision", self.precision, PRECISIONS)
        if self.warmup_steps >= self.steps:
            raise UsageError(
                "train.warmup_steps",
                got=self.warmup_steps,
                expected=f"less than {self.steps} steps",
            )
        if self.objective == "contrast":
            if self.positives == "image" and self.global_crops < 2:
                raise UsageError(
                    "train.global_crops",
                    got=self.global_crops,
                    expected="at least 2 with train.positives = image: one crop has no positive",
                )
            if self.positives == "caption" and self.views * self.global_crops < 2:
                raise UsageError(
                    "train.views",
                    got=self.views,
                    expected="at least 2: one picture of a caption has no positive",
                )
            crops = self.captions_per_batch * self.views * self.global_crops
            if self.head_norm == "batch" and crops < 2:
                raise UsageError(
                    "train.captions_per_batch",
                    got=self.captions_per_batch,
                    expected="a batch of at least 2 pictures with train.head_norm = batch",
                )
        if not self.teacher and self.patch_weight:
            raise UsageError(
                "train.patch_weight",
                got=f"{self.patch_weight:g}",
                expected="0 with train.teacher = false: the teacher gives the patches' targets",
            )


@dataclass(frozen=True)
class LinearProbeConfig:
    """A classifier on frozen cls features, what it has to choose chosen on a validation split."""

    protocol: str = "lbfgs"  # lbfgs | sgd | knn | few-shot
    image_size: int = 0  # 0: the backbone's own
    penalties: int = 45  # log-spaced L2 strengths; lbfgs and few-shot
    lowest_penalty: float = 1e-6
    highest_penalty: float = 1e5
    iterations: int = 1000  # at most, of L-BFGS
    standardise: bool = False  # z-score the features with the training split's statistics
    neighbours: int = 20  # of knn
    shots: int = 5  # pictures of each class; few-shot
    repeats: int = 10  # draws of the shots
    epochs: int = 90  # of sgd
    sgd_batch_size: int = 1024
    # sgd trains one classifier for each, all at once; learning rate = this x sgd_batch_size / 256
    base_lrs: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    batch_norm: bool = False  # sgd: normalise features by their batch, without scale and shift
    validation_share: float = 0.2  # of train, if the data has no validation split
    metric: str = "top1"  # top1 | mean_per_class | mean_ap (11 points; several classes a picture)
    batch_size: int = 64  # pictures through the backbone together
    workers: int = 2
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("penalties", "iterations", "batch_size", "neighbours", "shots", "repeats"):
            checks.at_least(f"linear-probe.{name}", getattr(self, name), 1)
        for name in ("epochs", "sgd_batch_size"):
            checks.at_least(f"linear-probe.{name}", getattr(self, name), 1)
        for name in ("image_size", "workers"):
            checks.at_least(f"linear-probe.{name}", getattr(self, name), 0)
        checks.seed("linear-probe.seed", self.seed)
        checks.within("linear-probe.validation_share", self.validation_share, 0, 0.9, low_open=True)
        checks.one_of("linear-probe.protocol", self.protocol, ("lbfgs", "sgd", "knn", "few-shot"))
        checks.one_of("linear-probe.metric", self.metric, ("top1", "mean_per_class", "mean_ap"))
        checks.one_of("linear-probe.precision", self.precision, PRECISIONS)
        if self.metric == "mean_ap" and self.protocol != "lbfgs":
            raise UsageError(
                "linear-probe.protocol", got=self.protocol, expected="lbfgs with metric mean_ap"
            )
        if not self.base_lrs or min(self.base_lrs) <= 0:
            raise UsageError(
                "linear-probe.base_lrs", got=list(self.base_lrs), expected="numbers above 0"
            )
        if not 0 < self.lowest_penalty <= self.highest_penalty:
            raise UsageError(
                "linear-probe.lowest_penalty",
                got=self.lowest_penalty,
                expected=f"above 0 and at most highest_penalty = {self.highest_penalty:g}",
            )


@dataclass(frozen=True)
class FinetuneConfig:
    """The whole backbone trained on labelled pictures (Table 14)."""

    image_size: int = 0  # 0: the backbone's own
    epochs: int = 100
    warmup_epochs: float = 20
    batch_size: int = 1024  # over all ranks
    micro_batch: int = 0  # pictures the ViT sees at a time, per rank; 0: all
    base_lr: float = 5e-5  # learning rate = base_lr x batch_size / 256
    min_lr: float = 1e-6
    layer_decay: float = 0.65
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    drop_path: float = 0.1
    crop_scale: tuple[float, float] = (0.08, 1.0)  # of training crops: area / picture area
    augment: str = "rand-m9-mstd0.5-inc1"  # timm's auto-augment string; "" for crop and flip only
    random_erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    label_smoothing: float = 0.1
    weight_ema: float = 0.9999
    weight_ema_warmup: bool = False  # let the average follow closely at first, for short runs
    test_crop: float = 0.95  # crop / resized shorter side
    validation_share: float = 0.2  # of train, if the data has no validation split
    workers: int = 4
    seed: int = 0
    precision: str = "auto"
    stop_after_minutes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            checks.at_least(f"finetune.{name}", getattr(self, name), 1)
        for name in ("image_size", "warmup_epochs", "base_lr", "min_lr", "weight_decay", "workers"):
            checks.at_least(f"finetune.{name}", getattr(self, name), 0)
        for name in ("mixup", "cutmix", "stop_after_minutes", "micro_batch"):
            checks.at_least(f"finetune.{name}", getattr(self, name), 0)
        for name in ("random_erasing", "label_smoothing", "weight_ema"):
            checks.within(f"finetune.{name}", getattr(self, name), 0, 1)
        for name in ("drop_path", "beta1", "beta2"):
            checks.within(f"finetune.{name}", getattr(self, name), 0, 1, high_open=True)
        checks.seed("finetune.seed", self.seed)
        checks.within("finetune.layer_decay", self.layer_decay, 0, 1, low_open=True)
        checks.within("finetune.test_crop", self.test_crop, 0, 1, low_open=True)
        checks.within("finetune.validation_share", self.validation_share, 0, 0.9, low_open=True)
        checks.one_of("finetune.precision", self.precision, PRECISIONS)
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UsageError(
                "finetune.crop_scale", got=list(self.crop_scale), expected="0 < low <= high <= 1"
            )
        if self.warmup_epochs >= self.epochs:
            raise UsageError(
                "finetune.warmup_epochs",
                got=f"{self.warmup_epochs:g}",
                expected=f"less than {self.epochs} epochs",
            )


@dataclass(frozen=True)
class SegmentConfig:
    """UperNet on the backbone, trained on pictures with class-id masks (Table 15)."""

    head: str = "upernet"  # upernet: all is trained | linear: backbone frozen, one linear layer
    image_size: int = 512  # training crop, and the test window
    short_side: int = 512  # pictures are resized to this shorter side; 0: left as they are
    stride: int = 341  # of the test window
    scale: tuple[float, float] = (0.5, 2.0)  # random resize before the crop
    max_class_share: float = 0.75  # a crop that one class fills beyond this is drawn again
    steps: int = 60_000
    warmup_steps: int = 1500
    batch_size: int = 32  # over all ranks
    lr: float = 8e-5
    poly_power: float = 1.0  # of the decay to 0 after the warm-up; 1: a straight line
    layer_decay: float = 0.6
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    drop_path: float = 0.1
    channels: int = 0  # of the decode head; 0: the backbone's width
    auxiliary_channels: int = 256
    auxiliary_weight: float = 0.4
    photometric: bool = True
    ignore_index: int = 255
    reduce_zero_label: bool = False  # 0 is unlabelled too, classes begin at 1: ADE20K
    validation_share: float = 0.2  # of train, if the data has no validation split
    validation_steps: int = 2000  # updates between two looks at the validation split
    checkpoint_steps: int = 2000
    workers: int = 4
    seed: int = 0
    precision: str = "auto"
    stop_after_minutes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image_size", "stride", "steps", "batch_size", "checkpoint_steps"):
            checks.at_least(f"segment.{name}", getattr(self, name), 1)
        checks.at_least("segment.validation_steps", self.validation_steps, 1)
        checks.one_of("segment.head", self.head, ("upernet", "linear"))
        checks.within("segment.poly_power", self.poly_power, 0, 10)
        checks.within("segment.max_class_share", self.max_class_share, 0, 1, low_open=True)
        for name in ("short_side", "warmup_steps", "lr", "weight_decay", "channels", "workers"):
            checks.at_least(f"segment.{name}", getattr(self, name), 0)
        for name in ("auxiliary_weight", "stop_after_minutes", "ignore_index"):
            checks.at_least(f"segment.{name}", getattr(self, name), 0)
        checks.at_least("segment.auxiliary_channels", self.auxiliary_channels, 1)
        for name in ("drop_path", "beta1", "beta2"):
            checks.within(f"segment.{name}", getattr(self, name), 0, 1, high_open=True)
        checks.seed("segment.seed", self.seed)
        checks.within("segment.layer_decay", self.layer_decay, 0, 1, low_open=True)
        checks.within("segment.validation_share", self.validation_share, 0, 0.9, low_open=True)
        checks.one_of("segment.precision", self.precision, PRECISIONS)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UsageError("segment.scale", got=list(self.scale), expected="0 < low <= high")
        if self.stride > self.image_size:
            raise UsageError(
                "segment.stride", got=self.stride, expected=f"at most image_size {self.image_size}"
            )
        if self.warmup_steps >= self.steps:
            raise UsageError(
                "segment.warmup_steps",
                got=self.warmup_steps,
                expected=f"less than {self.steps} steps",
            )


DTYPES = ("auto", "float32", "bfloat16", "float16")
PRECISIONS = ("auto", "float32", "bfloat16")
TRACKERS = ("tensorboard", "wandb", "trackio")

StageConfig = (
    CaptionsConfig | RenderConfig | TrainConfig | LinearProbeConfig | FinetuneConfig | SegmentConfig
)

STAGES: dict[str, type[StageConfig]] = {
    "captions": CaptionsConfig,
    "render": RenderConfig,
    "train": TrainConfig,
    "linear-probe": LinearProbeConfig,
    "finetune": FinetuneConfig,
    "segment": SegmentConfig,
}


# Keys that change how a run goes, not what it makes: they may differ when a run is continued.
RUNNING_KEYS = {
    "captions": {"count", "engine.batch_size"},  # a larger count continues a finished file
    "render": {
        "shard",
        "engine.batch_size",
        "engine.compile",
        "engine.vae_slicing",
        "engine.offload",
    },
    "train": {
        "workers",
        "micro_batch",
        "checkpoint_steps",
        "compile",
        "shard_optimizer",
        "keep_checkpoints",
        "log_steps",
        "backbone_steps",
        "knn_data",
        "knn_steps",
        "knn_pictures",
        "skip_nonfinite",
        "trackers",
        "stop_after_minutes",
    },
    "linear-probe": {"batch_size", "workers"},
    "finetune": {"workers", "stop_after_minutes"},
    "segment": {"workers", "stop_after_minutes", "checkpoint_steps"},
}
