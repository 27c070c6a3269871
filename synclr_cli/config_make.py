"""Settings of the stages that make a backbone: captions, render, train. See `fields.setting`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from synclr_cli.config_executor import CaptionsExecutorConfig, RenderExecutorConfig
from synclr_cli.errors import UsageError
from synclr_cli.fields import SCHEME, SHARD, Checked, file_names, from_one, setting

DTYPES = ("auto", "float32", "bfloat16", "float16")
PRECISIONS = ("auto", "float32", "bfloat16")
TRACKERS = ("tensorboard", "wandb", "trackio")
MOST_PARTS = 10_000_000  # of a folder; their numbers are kept in memory


@dataclass(frozen=True)
class CaptionEngineConfig(Checked):
    """Which language model completes the prompts, and how it samples."""

    TABLE = "captions.engine"

    name: str = setting("smollm2:", SCHEME, "the language model, as scheme:target")
    temperature: float = setting(0.8, "[0, 100]", "of the sampling; 0 takes the likeliest token")
    top_p: float = setting(0.9, "(0, 1]", "probability mass of the tokens sampled from")
    max_new_tokens: int = setting(100, "[1, 4096]", "longest completion", unit="tokens")
    dtype: str = setting(
        "auto", DTYPES, "of the weights; auto: bfloat16 where the hardware multiplies it faster"
    )
    options: dict[str, Any] = setting({}, None, "an engine's own settings")
    batch_size: int = setting(
        0, "[0, 65536]", "prompts completed together; 0: the engine's own", running=True
    )


@dataclass(frozen=True)
class CaptionsConfig(Checked):
    """Words -> captions."""

    TABLE = "captions"

    concepts: str = setting(
        "in21k",
        None,
        "a source's name, a word list (.txt .csv .parquet), or NAME:WEIGHT,...",
        same=file_names,
    )
    concept_cap: float = setting(1.0, "(0, 1]", "highest share of captions one concept may have")
    count: int = setting(1000, "[1, 1e10]", "captions to write", unit="captions", grows=True)
    seed: int = setting(0, "[0, 2^64)", "of all randomness")
    examples: int = setting(3, "[0, 64]", "captions shown before each completion")
    examples_block: int = setting(
        256, "[1, 65536]", "consecutive captions that are shown the same examples"
    )
    examples_file: str = setting("", None, 'TOML file of own examples; "": the shipped ones')
    backgrounds: str = setting(
        "hand", ("hand", "model"), "from lists written by hand, or by the engine for each concept"
    )
    quality_gate: bool = setting(
        True, None, "refuse captions with a fault; false refuses empty ones only"
    )
    max_similarity: float = setting(
        1.0, "(0, 1]", "to an earlier caption nearby; 1 refuses only equal ones"
    )
    attempts: int = setting(4, "[1, 100]", "at a caption before a rule writes it")
    share_c: float = setting(0.44, "[0, 1]", "of the captions of objects: concept alone")
    share_c_bg: float = setting(0.45, "[0, 1]", "of these: concept and background")
    share_c_rel: float = setting(0.11, "[0, 1]", "of these: concept and positional relation")
    captions_per_part: int = setting(
        1024, "[1, 1e6]", "of a Parquet file, the unit of resuming", unit="captions"
    )
    shard: str = setting(
        "1/1", SHARD, "I/N: of N jobs that share the work, this is the I-th", running=True
    )
    engine: CaptionEngineConfig = field(default_factory=CaptionEngineConfig)
    executor: CaptionsExecutorConfig = field(default_factory=CaptionsExecutorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shard", from_one(self.shard))
        total = self.share_c + self.share_c_bg + self.share_c_rel
        if abs(total - 1) > 1e-6:
            raise UsageError(
                "captions.share_c + share_c_bg + share_c_rel", got=f"{total:g}", expected=1
            )
        if self.count > MOST_PARTS * self.captions_per_part:
            raise UsageError(
                "captions.count",
                got=self.count,
                expected=f"at most {MOST_PARTS:_} parts of {self.captions_per_part} captions",
                do="raise captions.captions_per_part",
            )


@dataclass(frozen=True)
class RenderEngineConfig(Checked):
    """Which text-to-image model generates the images, and how."""

    TABLE = "render.engine"

    name: str = setting("pocket:", SCHEME, "the text-to-image model, as scheme:target")
    guidance: float = setting(
        -1.0,
        "-1 or [0, 100]",
        "scale of classifier-free guidance; -1: the engine's own, pocket: 1.5, none with few-step"
        " weights, diffusers: 2.5",
    )
    steps: int = setting(
        0,
        "[0, 1000]",
        "of denoising; 0: the engine's own, pocket: 10, 2 with few-step weights, diffusers: 50",
    )
    scheduler: str = setting(
        "auto",
        None,
        "a name of the engine's, or \"own\": the pipeline's; auto: pocket: own, diffusers: ddim,"
        " or own for flows",
    )
    size: int = setting(
        0,
        "0 or [8, 4096]",
        "of what is generated, before it is reduced to render.stored_size; 0: the engine's own,"
        " pocket: 32, procedural: 64, diffusers: 512",
        unit="px",
    )
    dtype: str = setting(
        "auto", DTYPES, "of the weights; auto: the fastest the hardware has"
    )  # fmt: skip
    variant: str = setting("", None, 'of the weights\' files, such as "fp16"')
    revision: str = setting("", None, "branch, tag or commit on the hub")
    negative_prompt: str = setting("", None, "of the unconditional half")
    safety_checker: bool = setting(
        False, None, "load the pipeline's own; what it objects to is rejected"
    )
    options: dict[str, Any] = setting({}, None, "an engine's own settings")
    batch_size: int = setting(
        0, "[0, 65536]", "generated together; 0: the engine's own", unit="images", running=True
    )
    compile: bool = setting(False, None, "torch.compile of the denoiser", running=True)
    vae_slicing: bool = setting(False, None, "decode one image after the other", running=True)
    vae_tiling: bool = setting(False, None, "decode in overlapping tiles", running=True)
    offload: bool = setting(
        False, None, "keep on the GPU only the model that works", running=True
    )  # fmt: skip

    def filled(self, **own: float | str) -> RenderEngineConfig:
        """Return these settings with an engine's own for those that are left to it."""
        left_open: dict[str, float] = {"guidance": -1.0}  # 0 is a guidance
        automatic: dict[str, Any] = {
            key: value
            for key, value in own.items()
            if vars(self)[key] in (left_open.get(key, 0), "auto")
        }
        return replace(self, **automatic)


@dataclass(frozen=True)
class RenderConfig(Checked):
    """Captions -> images, several per caption."""

    TABLE = "render"

    views: int = setting(4, "[1, 1024]", "of each caption", unit="images")
    seed: int = setting(0, "[0, 2^64)", "of all randomness")
    stored_size: int = setting(256, "[8, 4096]", "largest side of a stored image", unit="px")
    image_format: str = setting("jpeg", ("jpeg", "webp", "png"), "of the stored images")
    quality: int = setting(95, "[1, 100]", "of jpeg and webp")
    masks: bool = setting(True, None, "keep the class-id masks, if the engine has any")
    captions_per_part: int = setting(
        256, "[1, 65536]", "of a Parquet file, the unit of resuming", unit="captions"
    )
    redraws: int = setting(3, "[0, 100]", "of a rejected view, each from another seed")
    least_entropy: float = setting(
        2.0, "[0, 8]", "of a view's grey levels; less is rejected; 0: any passes", unit="bits"
    )
    duplicate_bits: int = setting(
        3, "[-1, 64]", "in which two views of a caption must differ, of 64; -1: any passes"
    )
    least_views: int = setting(
        0, "[0, 1024]", "captions that end with fewer are set aside; 0: fewer than render.views"
    )
    score_model: str = setting(
        "",
        None,
        'folder or hub id of a CLIP-like model that scores image against caption; "": none',
    )
    least_score: float = setting(
        -1.0, "[-1, 1]", "cosine similarity; less is rejected; -1: any passes"
    )
    shard: str = setting(
        "1/1", SHARD, "I/N: of N jobs that share the work, this is the I-th", running=True
    )
    engine: RenderEngineConfig = field(default_factory=RenderEngineConfig)
    executor: RenderExecutorConfig = field(default_factory=RenderExecutorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shard", from_one(self.shard))
        if self.least_views > self.views:
            raise UsageError(
                "render.least_views", got=self.least_views, expected=f"at most {self.views} views"
            )
        if self.least_score > -1 and not self.score_model:
            raise UsageError(
                "render.least_score without render.score_model",
                got=self.least_score,
                do="name the model that scores, such as openai/clip-vit-base-patch32",
            )


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Images -> backbone: multi-positive contrast, masked patches, EMA teacher, multi-crop."""

    TABLE = "train"

    # --- model
    arch: str = setting("vit_base_patch16_224", None, "a ViT of timm")
    patch_size: int = setting(0, "[0, 256]", "0: the arch's own", unit="px")
    depth: int = setting(0, "[0, 512]", "blocks; 0: the arch's own")
    init: str = setting(
        "",
        None,
        'weights to start from: timm:NAME, a .safetensors, .pth or run folder; "": random',
        same=file_names,
    )
    drop_path: float = setting(0.1, "[0, 1)", "stochastic depth, of the student only")
    head_norm: str = setting(
        "batch", ("batch", "layer"), "of the heads; batch: MoCo v3 as in the paper; layer: released"
    )
    head_hidden: int = setting(4096, "[1, 65536]", "width inside the contrastive head")
    head_out: int = setting(256, "[1, 65536]", "width of the embedding")
    patch_head_hidden: int = setting(2048, "[1, 65536]", "width inside the patch head")
    patch_head_bottleneck: int = setting(256, "[1, 65536]", "width before the prototypes")
    prototypes: int = setting(65536, "[1, 2e6]", "directions that patches are assigned to")
    # --- data
    captions_per_batch: int = setting(2048, "[1, 1e6]", "over all ranks", unit="captions")
    shuffle: str = setting(
        "full",
        ("full", "blocks"),
        "blocks: captions of a row group stay together, for a set read over a network",
    )
    views: int = setting(4, "[1, 64]", "of each caption in a batch", unit="images")
    global_crops: int = setting(1, "[1, 64]", "of each image; each has local crops of its own")
    image_size: int = setting(224, "[1, 4096]", "of a global crop", unit="px")
    local_size: int = setting(96, "[1, 4096]", "of a local crop", unit="px")
    local_crops: int = setting(4, "[0, 64]", "of each global crop; 0: no multi-crop")
    global_scale: tuple[float, float] = setting((0.32, 1.0), "(0, 1]", "crop area / image area")
    local_scale: tuple[float, float] = setting((0.08, 0.32), "(0, 1]", "crop area / image area")
    downsample: float = setting(0.05, "[0, 1]", "probability of StableRep's step of that name")
    jitter: float = setting(
        0.8, "[0, 1]", "probability of changing brightness, contrast, saturation and hue"
    )
    grey: float = setting(0.2, "[0, 1]", "probability of losing the colours")
    blur: float = setting(1.0, "[0, 1]", "factor on the recipe's probabilities of a blur; 0: none")
    solarise: float = setting(
        0.2, "[0, 1]", "probability, of global crops under the recipe that is seldom blurred"
    )
    # --- objective
    objective: str = setting(
        "contrast",
        ("contrast", "cross-entropy"),
        "cross-entropy: a linear classifier of the classes, as supervised",
    )
    positives: str = setting(
        "caption", ("caption", "concept", "image"), "what makes a class; image: SimCLR"
    )
    teacher: bool = setting(
        True, None, "false: candidates are the student's own, both sides trained (StableRep)"
    )
    temperature: float = setting(0.08, "(0, 100]", "of the contrastive softmax")
    patch_weight: float = setting(1.0, "[0, 1000]", "of the iBOT term; 0: no masked patches")
    mask_probability: float = setting(0.5, "[0, 1]", "share of the images that are masked")
    mask_ratio: float = setting(0.5, "[0, 1]", "share of the patches masked in those")
    mask_first: bool = setting(
        False, None, "mask always a caption's first images, as the released command does"
    )
    student_temperature: float = setting(0.1, "(0, 100]", "of the patch softmax")
    teacher_temperature: float = setting(0.04, "(0, 100]", "of the patch targets, at first")
    teacher_temperature_end: float = setting(0.07, "(0, 100]", "of the patch targets, at the end")
    teacher_temperature_steps: int = setting(
        4000, "[0, 1e9]", "from the first to the last temperature", unit="updates"
    )
    sinkhorn_iterations: int = setting(3, "[1, 1000]", "of the patch targets")
    ema: float = setting(0.994, "[0, 1]", "momentum of the teacher, at first")
    ema_end: float = setting(1.0, "[0, 1]", "momentum of the teacher, at the end")
    # --- optimisation
    steps: int = setting(500_000, "[1, 1e9]", "length of the run", unit="updates")
    warmup_steps: int = setting(80_000, "[0, 1e9]", "of the learning rate", unit="updates")
    peak_lr: float = setting(2e-3, "[0, 1e12]", "learning rate after the warm-up")
    end_lr: float = setting(0.0, "[0, 1e12]", "learning rate at the end")
    weight_decay: float = setting(0.04, "[0, 100]", "at first")
    weight_decay_end: float = setting(0.2, "[0, 100]", "at the end")
    beta1: float = setting(0.9, "[0, 1)", "of AdamW")
    beta2: float = setting(0.999, "[0, 1)", "of AdamW")
    clip_grad: float = setting(0.0, "[0, 1e6]", "largest norm of the gradient; 0: no clipping")
    seed: int = setting(0, "[0, 2^64)", "of all randomness")
    precision: str = setting("auto", PRECISIONS, "auto: bfloat16 where the hardware has it")
    # --- running
    workers: int = setting(
        -1, "[-1, 256]", "loader processes of each rank; -1: by its cores", running=True
    )
    micro_batch: int = setting(
        0, "[0, 1e6]", "the ViTs see at a time, per rank; 0: all", unit="images", running=True
    )
    compile: bool = setting(
        True, None, "torch.compile blocks and losses on a GPU; a CPU has its own way", running=True
    )
    shard: str = setting(
        "none",
        ("none", "optimizer", "full"),
        "what each rank keeps a share of: AdamW's moments, or weights and teacher, too (FSDP)",
        running=True,
    )
    checkpoint_steps: int = setting(
        500, "[1, 1e9]", "between two checkpoints", unit="updates", running=True
    )
    keep_checkpoints: int = setting(2, "[1, 1e6]", "the newest that are kept", running=True)
    log_steps: int = setting(
        20, "[1, 1e9]", "between two lines of metrics", unit="updates", running=True
    )
    backbone_steps: int = setting(
        0,
        "[0, 1e9]",
        "between two backbones that are kept; 0: only the last",
        unit="updates",
        running=True,
    )
    knn_data: str = setting(
        "", None, 'labelled images to grade the teacher on by k-NN; "": none', running=True
    )
    knn_steps: int = setting(
        1000, "[1, 1e9]", "between two grades", unit="updates", running=True
    )  # fmt: skip
    knn_images: int = setting(
        2000, "[1, 1e6]", "of each split, at most", unit="images", running=True
    )
    skip_nonfinite: int = setting(
        0, "[0, 1e6]", "updates skipped for a loss that is not finite, at most", running=True
    )
    trackers: tuple[str, ...] = setting((), TRACKERS, "beside metrics.jsonl", running=True)
    stop_after_minutes: float = setting(
        0.0, "[0, 1e6]", "save, stop and exit 0; 0: never", unit="min", running=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps >= self.steps:
            raise UsageError(
                "train.warmup_steps",
                got=self.warmup_steps,
                expected=f"less than {self.steps} steps",
            )
        if self.objective == "contrast":
            self._require_positives()
        if not self.teacher and self.patch_weight:
            raise UsageError(
                "train.patch_weight",
                got=f"{self.patch_weight:g}",
                expected="0 with train.teacher = false: the teacher gives the patches' targets",
            )

    def _require_positives(self) -> None:
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
                expected="at least 2: one image of a caption has no positive",
            )
        crops = self.captions_per_batch * self.views * self.global_crops
        if self.head_norm == "batch" and crops < 2:
            raise UsageError(
                "train.captions_per_batch",
                got=self.captions_per_batch,
                expected="a batch of at least 2 images with train.head_norm = batch",
            )
