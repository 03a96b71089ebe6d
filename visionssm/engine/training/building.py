"""Models, losses and optimizers from options, through timm's factories."""

import argparse
import logging
from collections import Counter

import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2, list_optimizers, optimizer_kwargs

from ...errors import UserError, nearest
from ..data import loaders
from ..inference.models import create_model

_logger = logging.getLogger(__name__)


def create_training_model(args: argparse.Namespace, num_classes: int) -> torch.nn.Module:
    """Create the model that the training options describe."""
    overlay = {"file": args.pretrained_path} if args.pretrained_path else None
    model = create_model(
        args.model,
        pretrained=args.pretrained or bool(args.pretrained_path),
        pretrained_cfg_overlay=overlay,
        num_classes=num_classes,
        global_pool=args.gp,
        drop_rate=args.drop,
        drop_path_rate=args.drop_path,
        drop_block_rate=args.drop_block,
        bn_momentum=args.bn_momentum,
        bn_eps=args.bn_eps,
        **{"in_chans": args.in_chans} | args.model_kwargs,
    )
    if args.head_init_scale is not None or args.head_init_bias is not None:
        head = model.get_classifier()
        with torch.no_grad():
            if args.head_init_scale is not None:
                head.weight.mul_(args.head_init_scale)
                head.bias.mul_(args.head_init_scale)
            if args.head_init_bias is not None:
                head.bias.fill_(args.head_init_bias)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    return model


def data_config(args: argparse.Namespace, model: torch.nn.Module) -> dict:
    """Return input size, normalisation, resampling and evaluation crop: the options above the model's defaults."""
    return loaders.data_config(vars(args), model.pretrained_cfg, args.model_kwargs.get("in_chans") or args.in_chans)


def loss_options(args: argparse.Namespace, mixup: Mixup | None) -> dict:
    """Return the arguments of timm's loss factory."""
    if not args.bce_loss:
        return dict(smoothing=args.smoothing, soft_targets=mixup is not None)
    return dict(
        loss_type="bce",
        smoothing=args.smoothing,
        soft_targets=mixup is not None,
        bce_target_thresh=args.bce_target_thresh,
        bce_sum=args.bce_sum,
    )


def learning_rate(args: argparse.Namespace, world_size: int) -> tuple[float, str]:
    """Return the learning rate and a sentence that says where it comes from.

    `--lr` is taken as it is. Otherwise `--lr-base` is scaled by images per update over `--lr-base-size`, by the
    square root for adaptive optimizers and linearly for others unless `--lr-base-scale` decides.
    """
    images = args.batch_size * world_size * args.grad_accum_steps
    if args.lr is not None:
        return args.lr, f"learning rate {args.lr:.3e} as given, {images} images per update"
    adaptive = any(part in args.opt.lower() for part in ("ada", "lamb"))
    rule = args.lr_base_scale or ("sqrt" if adaptive else "linear")
    ratio = images / args.lr_base_size
    rate = args.lr_base * (ratio**0.5 if rule == "sqrt" else ratio)
    return rate, (
        f"learning rate {rate:.3e} = {args.lr_base:.3e} x {'sqrt' if rule == 'sqrt' else ''}"
        f"({images} images per update / {args.lr_base_size})"
    )


def create_optimizer(args: argparse.Namespace, model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    """Create the optimizer with timm's parameter groups (no decay for biases, norms and `no_weight_decay`)."""
    if args.opt.lower().removeprefix("lookahead_") not in list_optimizers():
        raise UserError(f"there is no optimizer {args.opt!r}" + nearest(args.opt, list_optimizers()))
    options = optimizer_kwargs(args) | {"lr": rate} | args.opt_kwargs
    try:
        optimizer = create_optimizer_v2(model, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer {args.opt!r} cannot be built: {error}") from error
    rates = Counter(group["weight_decay"] for group in optimizer.param_groups for _ in group["params"])
    _logger.info(
        "%s: %d parameter groups; %s",
        args.opt,
        len(optimizer.param_groups),
        ", ".join(f"{count} tensors with weight decay {decay:g}" for decay, count in sorted(rates.items())),
    )
    return optimizer
