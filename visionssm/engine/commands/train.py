"""The training command: options in, a trained model and its records out."""

import argparse
import logging
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from timm.layers import set_fast_norm
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch.utils.data import IterableDataset

from ...errors import UserError
from ..data import processes
from ..data.datasets import check_same_classes, class_names
from ..data.loaders import create_eval_loader, create_train_loader, open_split
from ..data.randomness import seed_everything
from ..data.workers import loader_processes_ended
from ..inference.models import import_modules
from ..reports.progress import log_file, setup_logging
from ..training import building
from ..training.checkpoints import find_newest, load_weights, read_checkpoint, restore_task
from ..training.run_folder import RunFolder
from ..training.stopping import Interrupted, StopRequest
from ..training.tasks import create_task
from ..training.trainer import Trainer
from ..training.updater import Updater
from .arguments import parse_args

_logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run the training command and return its exit code: 0 done, 2 a user's error, 128 + n stopped by signal n."""
    peers_answer = True
    try:
        args = parse_args(argv)
        with StopRequest() as stop, loader_processes_ended():
            train(args, stop)
    except UserError as error:
        peers_answer = False  # the others may be lost, or wait for this one inside a step
        print(f"train: {error}", file=sys.stderr, flush=True)
        return 2
    except Interrupted as interruption:
        _logger.info("stopped by %s; continue with --resume auto", interruption)
        return interruption.exit_code
    finally:
        processes.stop(peers_answer)
    return 0


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
    trainer = build_trainer(args, device, world)
    with log_file(trainer.folder.path / "train.log") if world.primary else nullcontext():
        return trainer.fit(stop)


def build_trainer(args: argparse.Namespace, device: torch.device, world: processes.World) -> Trainer:
    """Check everything that can be checked before the first step, and build the trainer."""
    import_modules(args.device_modules)
    folder = RunFolder(args)
    train_data = open_split(args, args.train_split, training=True)
    eval_data = open_split(args, args.val_split, training=False)
    check_same_classes(train_data, eval_data)
    names = class_names(train_data)
    args.num_classes = count_classes(args.num_classes, names)

    set_fast_norm(args.fast_norm)
    seed_everything(args.seed, "weights")
    model = building.create_training_model(args, args.num_classes)
    if args.initial_checkpoint:
        load_weights(model, args.initial_checkpoint)
    config = building.data_config(args, model)
    if args.sync_bn and world.size > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    _logger.info(
        "%s: %.2f M parameters on %s, %d process(es), input %s",
        args.model,
        sum(p.numel() for p in model.parameters()) / 1e6,
        device,
        world.size,
        " x ".join(map(str, config["input_size"])),
    )

    train_loader = create_train_loader(train_data, args, config, args.num_classes, device, world)
    eval_loader = create_eval_loader(
        eval_data,
        config,
        batch_size=args.validation_batch_size or args.batch_size,
        workers=args.workers,
        device=device,
        world=world,
        pin_memory=args.pin_mem,
        bad_images=args.bad_images,
    )
    task = create_task(args, model, building.loss_options(args, train_loader.mixup), device)
    rate, sentence = building.learning_rate(args, world.size)
    _logger.info(sentence)
    optimizer = building.create_optimizer(args, task.get_trainable_module(), rate)
    updater = Updater(task, optimizer, args, device)
    if args.model_ema:
        task.setup_ema(
            decay=args.model_ema_decay,
            use_warmup=args.model_ema_warmup,
            device=torch.device("cpu") if args.model_ema_force_cpu else None,
        )

    updates_per_epoch = -(-len(train_loader) // args.grad_accum_steps)
    try:
        scheduler, epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(args), updates_per_epoch=updates_per_epoch
        )
    except (ValueError, AssertionError) as error:
        raise UserError(f"learning rate schedule {args.sched!r}: {error}") from error

    # After the scheduler, which sets initial learning rates, so that the checkpoint's rates stand.
    checkpoint, path = read_resumed(args, folder)
    if checkpoint is not None:
        fresh = args.no_resume_opt
        restore_task(task, checkpoint, path, args.model, None if fresh else optimizer, updater)
    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    if world.size > 1:
        task.prepare_distributed(
            device_ids=[world.local_rank] if device.type == "cuda" else None, broadcast_buffers=not args.no_ddp_bb
        )

    trainer = Trainer(
        args,
        task=task,
        optimizer=optimizer,
        updater=updater,
        scheduler=scheduler,
        epochs=epochs,
        train_loader=train_loader,
        eval_loader=eval_loader,
        folder=folder,
        device=device,
        world=world,
        facts={
            "classes": names,
            "data_config": {name: listed(value) for name, value in config.items()},
            "batch_size": args.batch_size,
            "processes": world.size,
            "grad_accum_steps": args.grad_accum_steps,
            "seed": args.seed,
            "aug_repeats": args.aug_repeats,
            "train_images": None if isinstance(train_data, IterableDataset) else len(train_data),
        },
    )
    if checkpoint is not None and not args.no_resume_opt:
        trainer.resume(checkpoint, path)
    else:
        trainer.start_at(0)
    if args.start_epoch is not None:
        trainer.start_at(args.start_epoch)
    _logger.info(
        "%d epochs of %d steps, %d updates each; %s",
        epochs,
        len(train_loader),
        updates_per_epoch,
        f"continuing {path} at epoch {trainer.epoch + 1}, step {trainer.step}"
        if trainer.resumed
        else "from the beginning",
    )
    return trainer


def count_classes(asked: int | None, names: list[str] | None) -> int:
    """Return the number of classes: as asked for, else as found in the data, else ImageNet's 1000.

    Raises:
        UserError: The data has more classes than asked for.
    """
    if names is not None and asked is not None and len(names) > asked:
        raise UserError(
            f"the data has {len(names)} classes ({', '.join(names[:5])}, ...), more than --num-classes {asked}"
        )
    if asked is not None:
        return asked
    return len(names) if names is not None else 1000


def read_resumed(args: argparse.Namespace, folder: RunFolder) -> tuple[dict | None, Path | None]:
    """Return the checkpoint to continue from and its path, or (None, None) to start anew.

    `auto` takes the furthest readable checkpoint of the run folder and names the damaged ones it passed over.

    Raises:
        UserError: A named checkpoint cannot be read, or all checkpoints of the folder are damaged.
    """
    if not args.resume:
        return None, None
    if args.resume != "auto":
        return read_checkpoint(args.resume), Path(args.resume)
    path, problems = find_newest(folder.path)
    for problem in problems:
        _logger.warning("%s; passed over", problem)
    if path is None:
        if problems:
            raise UserError(f"no checkpoint in {folder.path} is readable; start anew with --overwrite")
        return None, None
    return read_checkpoint(path), path


def listed(value):
    """Return tuples as lists, which every reader of checkpoints and YAML accepts."""
    return list(value) if isinstance(value, tuple) else value
