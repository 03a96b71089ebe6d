"""Models, losses, optimizers and learning rates from named values, through timm's factories."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from ...errors import UserError, nearest
from ..inference.models import create_model

_logger = logging.getLogger(__name__)


def create_training_model(
    name: str,
    num_classes: int,
    *,
    arguments: Mapping[str, Any],
    pretrained: bool = False,
    pretrained_path: str | None = None,
    head_init_scale: float | None = None,
    head_init_bias: float | None = None,
    grad_checkpointing: bool = False,
) -> torch.nn.Module:
    """Create a model to be trained.

    Args:
        name: timm name.
        num_classes: Classes.
        arguments: Further arguments of its constructor; None means not given.
        pretrained: Start from the published weights.
        pretrained_path: Start from this file as if it were the published weights.
        head_init_scale: Factor on the classifier's initial weights.
        head_init_bias: Initial bias of the classifier.
        grad_checkpointing: Recompute activations in the backward pass.

    Raises:
        UserError: There is no such model, or it refuses an argument.
    """
    model: Any = create_model(
        name,
        pretrained=pretrained or bool(pretrained_path),
        pretrained_cfg_overlay={"file": pretrained_path} if pretrained_path else None,
        num_classes=num_classes,
        **arguments,
    )
    if head_init_scale is not None or head_init_bias is not None:
        head = model.get_classifier()
        with torch.no_grad():
            if head_init_scale is not None:
                head.weight.mul_(head_init_scale)
                head.bias.mul_(head_init_scale)
            if head_init_bias is not None:
                head.bias.fill_(head_init_bias)
    if grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    return model


def loss_arguments(
    *,
    smoothing: float,
    soft_targets: bool,
    bce_loss: bool = False,
    bce_sum: bool = False,
    bce_target_thresh: float | None = None,
) -> dict[str, Any]:
    """Return the arguments of timm's loss factory; `soft_targets` says that mixing makes them."""
    common = {"smoothing": smoothing, "soft_targets": soft_targets}
    if not bce_loss:
        return common
    return common | {"loss_type": "bce", "bce_target_thresh": bce_target_thresh, "bce_sum": bce_sum}


def balanced_weights(labels: Sequence[int], num_classes: int) -> torch.Tensor:
    """Return weights (classes,) inverse to the images of a class, whose mean over the images is 1; 0 without images."""
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes).double()
    weights = len(labels) / ((counts > 0).sum() * counts.clamp(min=1)) * (counts > 0)
    return weights.float()


def balanced_samples(labels: Sequence[int]) -> list[float]:
    """Return a weight per image that makes every class as likely."""
    return balanced_weights(labels, max(labels) + 1)[torch.tensor(labels)].tolist()


def weighted_loss(arguments: Mapping[str, Any], weights: torch.Tensor) -> torch.nn.Module:
    """Return torch's cross-entropy with class weights, for the arguments that `loss_arguments` returned.

    Raises:
        UserError: They ask for another loss.
    """
    if arguments.get("loss_type"):
        raise UserError("--class-weights weigh the cross-entropy and do not go with --bce-loss")
    smoothing = 0.0 if arguments["soft_targets"] else arguments["smoothing"]  # mixing has smoothed already
    return torch.nn.CrossEntropyLoss(weights, label_smoothing=smoothing)


def learning_rate(
    images: int, *, lr: float | None, lr_base: float, lr_base_size: int, lr_base_scale: str, opt: str
) -> tuple[float, str]:
    """Return the learning rate and a sentence that says where it comes from.

    `lr` is taken as it is. Otherwise `lr_base` is scaled by images per update over `lr_base_size`, by the square root
    for adaptive optimizers and linearly for others unless `lr_base_scale` decides.
    """
    if lr is not None:
        return lr, f"learning rate {lr:.3e} as given, {images} images per update"
    adaptive = any(part in opt.lower() for part in ("ada", "lamb"))
    rule = lr_base_scale or ("sqrt" if adaptive else "linear")
    ratio = images / lr_base_size
    rate = lr_base * (ratio**0.5 if rule == "sqrt" else ratio)
    return rate, (
        f"learning rate {rate:.3e} = {lr_base:.3e} x {'sqrt' if rule == 'sqrt' else ''}"
        f"({images} images per update / {lr_base_size})"
    )


def create_optimizer(model: torch.nn.Module, opt: str, arguments: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Create the optimizer with timm's parameter groups (no decay for biases, norms and `no_weight_decay`).

    Args:
        model: Module to be trained.
        opt: timm's name of the optimizer.
        arguments: Further arguments of timm's factory.

    Raises:
        UserError: There is no such optimizer, or it refuses an argument.
    """
    if opt.lower().removeprefix("lookahead_") not in list_optimizers():
        raise UserError(f"there is no optimizer {opt!r}" + nearest(opt, map(str, list_optimizers())))
    try:
        optimizer = create_optimizer_v2(model, **(dict(arguments) | {"opt": opt}))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer {opt!r} cannot be built: {error}") from error
    rates = Counter(group["weight_decay"] for group in optimizer.param_groups for _ in group["params"])
    _logger.info(
        "%s: %d parameter groups; %s",
        opt,
        len(optimizer.param_groups),
        ", ".join(f"{count} tensors with weight decay {decay:g}" for decay, count in sorted(rates.items())),
    )
    return optimizer


def create_scheduler(
    optimizer: torch.optim.Optimizer, arguments: Mapping[str, Any], updates_per_epoch: int
) -> tuple[Scheduler | None, int]:
    """Create the learning rate's schedule.

    Args:
        optimizer: Optimizer.
        arguments: Arguments of timm's factory.
        updates_per_epoch: Updates per epoch.

    Returns:
        The schedule, None for a constant rate, and the epochs that it asks for.

    Raises:
        UserError: There is no such schedule, or it refuses an argument.
    """
    try:
        return create_scheduler_v2(optimizer, **arguments, updates_per_epoch=updates_per_epoch)
    except (ValueError, AssertionError) as error:
        raise UserError(f"learning rate schedule {arguments['sched']!r}: {error}") from error
