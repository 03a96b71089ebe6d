"""The training of restoration models, from parsed arguments."""

import argparse
import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from timm.optim import optimizer_kwargs
from timm.scheduler import scheduler_kwargs
from torch import nn

from ..checkpoints import load, read
from ..engine.data import processes
from ..engine.data.randomness import seed_everything
from ..engine.data.restoration import (
    Degradation,
    TrainPatches,
    WholePairs,
    create_pair_loader,
    create_patch_loader,
    pair_up,
)
from ..engine.inference.prediction import find_images
from ..engine.inference.restoration import build_restorer, evaluate_restoration
from ..engine.reports.progress import Trackers, log_file, setup_logging
from ..engine.training import building
from ..engine.training.checkpoints import AtomicSaver, restore_task
from ..engine.training.resuming import read_resumed
from ..engine.training.run_folder import RunFolder
from ..engine.training.stopping import StopRequest
from ..engine.training.tasks import create_task
from ..engine.training.trainer import Trainer
from ..engine.training.updater import Updater
from ..errors import UserError
from . import _auto

_logger = logging.getLogger(__name__)


class CharbonnierLoss(nn.Module):
    """Mean of sqrt(difference^2 + eps), an absolute error that is smooth at 0 (Charbonnier et al. 1994)."""

    def __init__(self, eps: float = 1e-9):
        super().__init__()
        self.eps = eps

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.sqrt((output - target).square() + self.eps).mean()


LOSSES = {"l1": nn.L1Loss, "charbonnier": CharbonnierLoss, "mse": nn.MSELoss}


def train(args: argparse.Namespace, stop: StopRequest) -> dict[str, float]:
    """Train as the options say.

    Returns:
        The numbers of the last evaluation, and `best` and `best_epoch`.

    Raises:
        UserError: Something about options, data, checkpoint or run needs the user.
        Interrupted: A signal stopped the run after storing it.
    """
    device, world = processes.start(args.device, args.dist_backend, args.dist_timeout)
    setup_logging(world.primary)
    if processes.restarts():
        args.resume, args.overwrite = "auto", False
    trainer = build_trainer(args, device, world)
    with log_file(trainer.folder.path / "train.log") if world.primary else nullcontext():
        return trainer.fit(stop)


def build_trainer(args: argparse.Namespace, device: torch.device, world: processes.World) -> Trainer:
    """Check everything that can be checked before the first step, and build the trainer.

    Raises:
        UserError: Something about options, data, checkpoint or run needs the user.
    """
    if not args.data_dir:
        raise UserError("--data-dir is missing: a folder with train and validation inside")
    args.workers = _auto.workers(args.workers)
    folder = RunFolder(args.output, args.experiment, resume=args.resume, overwrite=args.overwrite, options=vars(args))
    seed_everything(args.seed, "weights")
    model = build_restorer(args.model, args.model_kwargs)
    if model.in_chans not in (1, 3):
        raise UserError(f"image files have 1 or 3 channels, model {args.model!r} takes {model.in_chans}")
    degradation = Degradation.parse(args.degradation) if args.degradation else None
    if degradation is not None:
        degradation.check_scale(model.scale)
    train_pairs, eval_pairs = (
        open_pairs(Path(args.data_dir) / split, degradation, model.scale) for split in ("train", "validation")
    )
    if args.initial_checkpoint:
        load(read(args.initial_checkpoint), model)
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    model.to(device)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    _logger.info("%s: %.2f M parameters on %s, %d process(es)", args.model, parameters, device, world.size)

    shared = dict(degradation=degradation, channels=model.in_chans, scale=model.scale)
    samples = args.epoch_steps * args.batch_size * world.size
    patches = TrainPatches(train_pairs, samples, patch=args.patch_size, seed=args.seed, **shared)
    loader = create_patch_loader(patches, device, world, batch_size=args.batch_size, workers=args.workers)
    eval_loader = create_pair_loader(WholePairs(eval_pairs, **shared), device, world, workers=args.workers)
    task = create_task(model, LOSSES[args.loss](), device)
    rate, sentence = building.learning_rate(
        args.batch_size * world.size * args.grad_accum_steps,
        lr=args.lr,
        lr_base=args.lr_base,
        lr_base_size=args.lr_base_size,
        lr_base_scale=args.lr_base_scale,
        opt=args.opt,
    )
    _logger.info(sentence)
    options = optimizer_kwargs(args) | {"lr": rate} | dict(args.opt_kwargs)
    optimizer = building.create_optimizer(task.get_trainable_module(), args.opt, options)
    precision = args.amp_dtype if args.amp else None
    updater = Updater(
        task, optimizer, device, clip=args.clip_grad, clip_mode=args.clip_mode, scale_loss=precision == "float16"
    )
    if args.model_ema:
        task.setup_ema(
            decay=args.model_ema_decay,
            use_warmup=args.model_ema_warmup,
            device=torch.device("cpu") if args.model_ema_force_cpu else None,
        )
    updates = -(-len(loader) // args.grad_accum_steps)
    scheduler, epochs = building.create_scheduler(optimizer, scheduler_kwargs(args), updates)
    checkpoint, path = read_resumed(args.resume, folder)
    if checkpoint is not None and path is not None:
        restore_task(task, checkpoint, path, args.model, None if args.no_resume_opt else optimizer, updater)
    if world.size > 1:
        task.prepare_distributed(
            device_ids=[world.local_rank] if device.type == "cuda" else None, broadcast_buffers=not args.no_ddp_bb
        )
    saver = None
    if world.primary:
        saver = AtomicSaver(
            model=task.get_trainable_module(),
            task=task,
            optimizer=optimizer,
            args=args,
            amp_scaler=updater,
            checkpoint_dir=str(folder.path),
            recovery_dir=str(folder.path),
            decreasing=args.eval_metric == "loss",
            max_history=args.checkpoint_hist,
        )
    trainer = Trainer(
        name=args.model,
        task=task,
        optimizer=optimizer,
        updater=updater,
        scheduler=scheduler,
        sched_on_updates=args.sched_on_updates,
        epochs=epochs,
        train_loader=loader,
        eval_loader=eval_loader,
        folder=folder,
        saver=saver,
        trackers=Trackers(
            folder.path,
            tensorboard=args.log_tensorboard and world.primary,
            wandb=args.log_wandb and world.primary,
            project=args.wandb_project,
            wandb_id=((task.run_state or {}).get("wandb") if path is not None and folder.holds(path) else None),
            config=vars(args),
        ),
        device=device,
        world=world,
        facts={
            "batch_size": args.batch_size,
            "processes": world.size,
            "grad_accum_steps": args.grad_accum_steps,
            "seed": args.seed,
            "aug_repeats": 0,
            "train_images": len(train_pairs),
        },
        seed=args.seed,
        lower_precision=precision,
        channels_last=False,
        grad_accum_steps=args.grad_accum_steps,
        max_nonfinite=args.max_nonfinite,
        eval_metric=args.eval_metric,
        evaluate_average=not args.model_ema_force_cpu,
        dist_bn="",
        log_interval=args.log_interval,
        val_interval=args.val_interval,
        recovery_interval=args.recovery_interval,
        evaluate=partial(evaluate_restoration, space=args.space),
    )
    if checkpoint is not None and path is not None and not args.no_resume_opt:
        trainer.resume(checkpoint, path)
    else:
        trainer.start_at(0)
    if args.start_epoch is not None:
        trainer.start_at(args.start_epoch)
    where = trainer.position
    _logger.info(
        "%d epochs of %d steps on %d images, evaluated on %d; %s",
        epochs,
        len(loader),
        len(train_pairs),
        len(eval_pairs),
        f"continuing {path} at epoch {where.epoch}, step {where.step}" if trainer.resumed else "from the beginning",
    )
    return trainer


def open_pairs(folder: Path, degradation: Degradation | None, scale: int) -> list[tuple[Path, Path | None]]:
    """Sharp images of a folder, with their degraded forms where these are not generated.

    Raises:
        UserError: There are none, or one has no partner.
    """
    targets, inputs = folder / "target", folder / "input"
    if degradation is not None:
        return [(path, None) for path in find_images([targets if targets.is_dir() else folder])]
    if not (targets.is_dir() and inputs.is_dir()):
        raise UserError(
            f"{folder} needs the folders target and input; or let --degradation make degraded images of sharp ones"
        )
    return list(pair_up(find_images([targets]), find_images([inputs]), scale))
