"""The parsed arguments of the training command, cut into groups of named and typed values."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

Group = TypeVar("Group")


def cut(group: type[Group], args: argparse.Namespace) -> Group:
    """Return a group of options: each field has the value of the argument of that name."""
    return group(**{field.name: getattr(args, field.name) for field in fields(group)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class DataOptions:
    """Where the images are and how they are read."""

    data_dir: str | None
    dataset: str
    train_split: str
    val_split: str
    train_num_samples: int | None
    val_num_samples: int | None
    dataset_download: bool
    class_map: str
    labels: str | None
    val_fraction: float | None
    input_img_mode: str | None
    input_key: str | None
    target_key: str | None
    epoch_repeats: float
    pixel_range: Sequence[float] | None
    max_pixels: int
    balanced_sampling: bool
    bad_images: Literal["refuse", "skip"]
    workers: int
    decoder: str
    pin_mem: bool
    batch_size: int
    validation_batch_size: int | None
    num_classes: int | None
    in_chans: int | None
    seed: int


@dataclass(frozen=True)
class ImageOptions:
    """How images are prepared, under timm's names of its data configuration."""

    img_size: int | None
    input_size: Sequence[int] | None
    crop_pct: float | None
    crop_mode: str | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    interpolation: str


@dataclass(frozen=True)
class AugmentationOptions:
    """What is drawn anew for every image or batch."""

    no_aug: bool
    train_crop_mode: str | None
    scale: Sequence[float]
    ratio: Sequence[float]
    hflip: float
    vflip: float
    color_jitter: float
    color_jitter_prob: float | None
    grayscale_prob: float | None
    gaussian_blur_prob: float | None
    aa: str | None
    train_interpolation: str
    aug_repeats: int
    reprob: float
    remode: str
    recount: int
    mixup: float
    cutmix: float
    cutmix_minmax: Sequence[float] | None
    mixup_prob: float
    mixup_switch_prob: float
    mixup_mode: str
    mixup_off_epoch: int

    def transform(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of timm's training transform.

        Args:
            config: Data configuration.
        """
        channels = config["input_size"][0]
        # planes of other numbers of channels are augmented one by one, and mean is what is filled in
        means = {
            name: config[name] if channels in (1, 3) else (sum(config[name]) / channels,) for name in ("mean", "std")
        }
        same = ("no_aug", "train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter", "color_jitter_prob")
        return (
            {name: getattr(self, name) for name in same}
            | {
                "grayscale_prob": self.grayscale_prob or 0.0,
                "gaussian_blur_prob": self.gaussian_blur_prob or 0.0,
                "auto_augment": self.aa,
                "interpolation": config["interpolation"] if self.no_aug else self.train_interpolation,
            }
            | means
        )


@dataclass(frozen=True)
class ModelOptions:
    """The model and what its weights start from."""

    model: str
    model_kwargs: Mapping[str, Any]
    pretrained: bool
    pretrained_path: str | None
    initial_checkpoint: str
    gp: str | None
    in_chans: int | None
    drop: float
    drop_path: float | None
    drop_block: float | None
    bn_momentum: float | None
    bn_eps: float | None
    head_init_scale: float | None
    head_init_bias: float | None
    grad_checkpointing: bool
    channels_last: bool
    fast_norm: bool
    sync_bn: bool
    torchcompile: str | None
    torchcompile_mode: str | None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the model's constructor."""
        return {
            "in_chans": self.in_chans,
            "global_pool": self.gp,
            "drop_rate": self.drop,
            "drop_path_rate": self.drop_path,
            "drop_block_rate": self.drop_block,
            "bn_momentum": self.bn_momentum,
            "bn_eps": self.bn_eps,
        } | dict(self.model_kwargs)


@dataclass(frozen=True)
class DeviceOptions:
    """Where a run computes, with how many others, and in which precision."""

    device: str
    device_modules: Sequence[str] | None
    amp: bool
    amp_dtype: Literal["float16", "bfloat16"]
    no_ddp_bb: bool
    dist_backend: str | None
    dist_timeout: float
    fsdp: bool
    fsdp_offload: bool

    @property
    def lower_precision(self) -> str | None:
        """The lower precision of the forward pass, or None."""
        return self.amp_dtype if self.amp else None


@dataclass(frozen=True)
class OptimOptions:
    """Loss, optimizer and averaged weights."""

    smoothing: float
    class_weights: Sequence[str] | None
    bce_loss: bool
    bce_sum: bool
    bce_target_thresh: float | None
    opt: str
    opt_eps: float | None
    opt_betas: Sequence[float] | None
    opt_kwargs: Mapping[str, Any]
    momentum: float
    weight_decay: float
    clip_grad: float | None
    clip_mode: Literal["norm", "value", "agc"]
    layer_decay: float | None
    layer_decay_min_scale: float
    layer_decay_no_opt_scale: float | None
    lr: float | None
    lr_base: float
    lr_base_size: int
    lr_base_scale: str
    grad_accum_steps: int
    model_ema: bool
    model_ema_decay: float
    model_ema_warmup: bool
    model_ema_force_cpu: bool
    mesa: float
    mesa_start_epoch: int | None
    mesa_temperature: float


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate's course, under the names that timm's `scheduler_kwargs` reads."""

    sched: str
    sched_on_updates: bool
    epochs: int
    warmup_epochs: int
    warmup_lr: float
    warmup_prefix: bool
    cooldown_epochs: int
    min_lr: float
    decay_epochs: float
    decay_milestones: Sequence[int]
    decay_rate: float
    patience_epochs: int
    lr_noise: Sequence[float] | None
    lr_noise_pct: float
    lr_noise_std: float
    lr_cycle_mul: float
    lr_cycle_decay: float
    lr_cycle_limit: int
    lr_k_decay: float
    eval_metric: Literal["top1", "top5", "loss"]
    seed: int


@dataclass(frozen=True)
class DistillationOptions:
    """The teacher, if there is one."""

    kd_model_name: str | None
    kd_pretrained_path: str | None
    kd_distill_type: Literal["logit", "feature", "token"]
    kd_loss_type: str
    kd_token_distill_type: Literal["soft", "hard"]
    kd_student_feature_dim: int | None
    kd_teacher_feature_dim: int | None
    kd_temperature: float
    distill_loss_weight: float | None
    task_loss_weight: float | None


@dataclass(frozen=True)
class RunOptions:
    """The run: its folder, where it begins, and how often it tells and stores."""

    output: str
    experiment: str
    overwrite: bool
    resume: str
    no_resume_opt: bool
    start_epoch: int | None
    seed: int
    log_interval: int
    val_interval: int
    recovery_interval: int
    checkpoint_hist: int
    eval_metric: Literal["top1", "top5", "loss"]
    max_nonfinite: int
    dist_bn: Literal["broadcast", "reduce", ""]
    log_tensorboard: bool
    log_wandb: bool
    wandb_project: str | None


@dataclass(frozen=True)
class TrainOptions:
    """Everything that the training command is told."""

    data: DataOptions
    images: ImageOptions
    augmentation: AugmentationOptions
    model: ModelOptions
    device: DeviceOptions
    optim: OptimOptions
    schedule: ScheduleOptions
    distillation: DistillationOptions
    run: RunOptions

    @classmethod
    def of(cls, args: argparse.Namespace) -> "TrainOptions":
        """Cut the arguments into groups."""
        return cls(**{field.name: cut(field.type, args) for field in fields(cls)})  # type: ignore[arg-type]
