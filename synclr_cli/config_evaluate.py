"""Settings of the evaluations: linear-probe, finetune, segment. See `fields.setting`."""

from __future__ import annotations

from dataclasses import dataclass, field

from synclr_cli.config_executor import (
    FinetuneExecutorConfig,
    LinearProbeExecutorConfig,
    SegmentExecutorConfig,
)
from synclr_cli.config_make import PRECISIONS
from synclr_cli.errors import UsageError
from synclr_cli.fields import Checked, setting


@dataclass(frozen=True)
class LinearProbeConfig(Checked):
    """A classifier on frozen cls features, its strength chosen on a validation split."""

    TABLE = "linear-probe"

    protocol: str = setting(
        "lbfgs", ("lbfgs", "sgd", "knn", "few-shot"), "how the features are classified"
    )
    image_size: int = setting(0, "[0, 4096]", "0: the backbone's own", unit="px")
    penalties: int = setting(45, "[1, 1000]", "log-spaced L2 strengths; lbfgs and few-shot")
    lowest_penalty: float = setting(1e-6, "(0, 1e12]", "of these")
    highest_penalty: float = setting(1e5, "(0, 1e12]", "of these")
    iterations: int = setting(1000, "[1, 1e6]", "of L-BFGS, at most")
    standardise: bool = setting(
        False, None, "divide the features by the training split's deviations, mean taken off"
    )
    neighbours: int = setting(20, "[1, 10000]", "of knn")
    shots: int = setting(5, "[1, 10000]", "of each class; few-shot", unit="images")
    repeats: int = setting(10, "[1, 1000]", "draws of the shots")
    epochs: int = setting(90, "[1, 100000]", "of sgd")
    sgd_batch_size: int = setting(1024, "[1, 1e6]", "of sgd", unit="images")
    base_lrs: tuple[float, ...] = setting(
        (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        "(0, 1000]",
        "sgd trains a classifier for each, all at once; learning rate = this x batch size / 256",
    )
    batch_norm: bool = setting(
        False, None, "sgd: normalise features by their batch, without scale and shift"
    )
    validation_share: float = setting(
        0.2, "(0, 0.9]", "of train, if the data has no validation split"
    )
    metric: str = setting(
        "top1",
        ("top1", "mean_per_class", "mean_ap"),
        "mean_ap: 11 points, several classes an image",
    )
    seed: int = setting(0, "[0, 2^64)", "of all randomness")
    precision: str = setting("auto", PRECISIONS, "auto: bfloat16 where the hardware has it")
    # --- running
    batch_size: int = setting(
        128, "[1, 65536]", "through the backbone together", unit="images", running=True
    )
    workers: int = setting(
        -1, "[-1, 256]", "loader processes of each rank; -1: by its cores", running=True
    )
    executor: LinearProbeExecutorConfig = field(default_factory=LinearProbeExecutorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric == "mean_ap" and self.protocol != "lbfgs":
            raise UsageError(
                "linear-probe.protocol", got=self.protocol, expected="lbfgs with metric mean_ap"
            )
        if not self.base_lrs:
            raise UsageError("linear-probe.base_lrs", got="[]", expected="numbers above 0")
        if self.lowest_penalty > self.highest_penalty:
            raise UsageError(
                "linear-probe.lowest_penalty",
                got=self.lowest_penalty,
                expected=f"above 0 and at most highest_penalty = {self.highest_penalty:g}",
            )


@dataclass(frozen=True)
class FinetuneConfig(Checked):
    """The whole backbone trained on labelled images (Table 14)."""

    TABLE = "finetune"

    image_size: int = setting(0, "[0, 4096]", "0: the backbone's own", unit="px")
    epochs: int = setting(100, "[1, 100000]", "length of the run")
    warmup_epochs: float = setting(20, "[0, 100000]", "of the learning rate", unit="epochs")
    batch_size: int = setting(1024, "[1, 1e6]", "over all ranks", unit="images")
    base_lr: float = setting(5e-5, "[0, 1e12]", "learning rate = this x batch_size / 256")
    min_lr: float = setting(1e-6, "[0, 1e12]", "learning rate at the end")
    layer_decay: float = setting(0.65, "(0, 1]", "factor on the rate from each block to the last")
    weight_decay: float = setting(0.05, "[0, 100]", "of AdamW")
    beta1: float = setting(0.9, "[0, 1)", "of AdamW")
    beta2: float = setting(0.999, "[0, 1)", "of AdamW")
    drop_path: float = setting(0.1, "[0, 1)", "stochastic depth")
    crop_scale: tuple[float, float] = setting((0.08, 1.0), "(0, 1]", "crop area / image area")
    augment: str = setting(
        "rand-m9-mstd0.5-inc1", None, 'timm\'s auto-augment string; "": crop and flip only'
    )
    random_erasing: float = setting(0.25, "[0, 1]", "probability")
    mixup: float = setting(0.8, "[0, 1000]", "alpha of its Beta distribution; 0: off")
    cutmix: float = setting(1.0, "[0, 1000]", "alpha of its Beta distribution; 0: off")
    label_smoothing: float = setting(0.1, "[0, 1]", "share of a label spread over all classes")
    weight_ema: float = setting(0.9999, "[0, 1]", "momentum of the average that is evaluated")
    weight_ema_warmup: bool = setting(
        False, None, "let the average follow closely at first, for short runs"
    )
    test_crop: float = setting(0.95, "(0, 1]", "crop / resized shorter side")
    validation_share: float = setting(
        0.2, "(0, 0.9]", "of train, if the data has no validation split"
    )
    seed: int = setting(0, "[0, 2^64)", "of all randomness")
    precision: str = setting("auto", PRECISIONS, "auto: bfloat16 where the hardware has it")
    # --- running
    micro_batch: int = setting(
        0, "[0, 1e6]", "the ViT sees at a time, per rank; 0: all", unit="images", running=True
    )
    workers: int = setting(
        -1, "[-1, 256]", "loader processes of each rank; -1: by its cores", running=True
    )
    stop_after_minutes: float = setting(
        0.0, "[0, 1e6]", "save, stop and exit 0; 0: never", unit="min", running=True
    )
    executor: FinetuneExecutorConfig = field(default_factory=FinetuneExecutorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise UsageError(
                "finetune.warmup_epochs",
                got=f"{self.warmup_epochs:g}",
                expected=f"less than {self.epochs} epochs",
            )


@dataclass(frozen=True)
class SegmentConfig(Checked):
    """UperNet on the backbone, trained on images with class-id masks (Table 15)."""

    TABLE = "segment"

    head: str = setting(
        "upernet",
        ("upernet", "linear"),
        "upernet: all is trained; linear: the backbone is frozen, one linear layer",
    )
    image_size: int = setting(512, "[1, 4096]", "training crop, and the test window", unit="px")
    short_side: int = setting(
        512, "[0, 4096]", "images are resized to this shorter side; 0: left as they are", unit="px"
    )
    stride: int = setting(341, "[1, 4096]", "of the test window", unit="px")
    scale: tuple[float, float] = setting((0.5, 2.0), "(0, 100]", "random resize before the crop")
    max_class_share: float = setting(
        0.75, "(0, 1]", "a crop that one class fills beyond this is drawn again"
    )
    steps: int = setting(60_000, "[1, 1e9]", "length of the run", unit="updates")
    warmup_steps: int = setting(1500, "[0, 1e9]", "of the learning rate", unit="updates")
    batch_size: int = setting(32, "[1, 1e6]", "over all ranks", unit="images")
    lr: float = setting(8e-5, "[0, 1e12]", "learning rate after the warm-up")
    poly_power: float = setting(
        1.0, "[0, 10]", "of the decay to 0 after the warm-up; 1: a straight line"
    )
    layer_decay: float = setting(0.6, "(0, 1]", "factor on the rate from each block to the last")
    weight_decay: float = setting(0.05, "[0, 100]", "of AdamW")
    beta1: float = setting(0.9, "[0, 1)", "of AdamW")
    beta2: float = setting(0.999, "[0, 1)", "of AdamW")
    drop_path: float = setting(0.1, "[0, 1)", "stochastic depth")
    channels: int = setting(0, "[0, 65536]", "of the decode head; 0: the backbone's width")
    auxiliary_channels: int = setting(256, "[1, 65536]", "of the auxiliary head")
    auxiliary_weight: float = setting(0.4, "[0, 1000]", "of the auxiliary head's loss")
    photometric: bool = setting(True, None, "change brightness, contrast, saturation and hue")
    ignore_index: int = setting(255, "[0, 65535]", "class id that is not counted")
    reduce_zero_label: bool = setting(
        False, None, "0 is unlabelled too, classes begin at 1: ADE20K"
    )
    validation_share: float = setting(
        0.2, "(0, 0.9]", "of train, if the data has no validation split"
    )
    validation_steps: int = setting(
        2000, "[1, 1e9]", "between two grades on the validation split", unit="updates"
    )
    seed: int = setting(0, "[0, 2^64)", "of all randomness")
    precision: str = setting("auto", PRECISIONS, "auto: bfloat16 where the hardware has it")
    # --- running
    checkpoint_steps: int = setting(
        1000, "[1, 1e9]", "between two checkpoints", unit="updates", running=True
    )
    workers: int = setting(
        -1, "[-1, 256]", "loader processes of each rank; -1: by its cores", running=True
    )
    stop_after_minutes: float = setting(
        0.0, "[0, 1e6]", "save, stop and exit 0; 0: never", unit="min", running=True
    )
    executor: SegmentExecutorConfig = field(default_factory=SegmentExecutorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
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
