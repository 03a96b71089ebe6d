"""What the training command does: options in, a trained model and its records out."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm, set_fast_norm
from timm.optim import optimizer_kwargs
from timm.scheduler import scheduler_kwargs
from torch.utils.data import IterableDataset

from ..checkpoints import load, read
from ..engine.data import processes
from ..engine.data.datasets import class_mapping, labels, log_taken, names_by_index, open_by_names, read_class_map
from ..engine.data.images import ImageReader
from ..engine.data.loaders import TrainLoader, create_eval_loader, create_mixup, create_train_loader, data_config
from ..engine.data.randomness import seed_everything
from ..engine.reports.progress import Trackers, log_file, setup_logging
from ..engine.training import building
from ..engine.training.checkpoints import AtomicSaver, restore_optimizer, restore_task
from ..engine.training.pretraining import create_pretraining
from ..engine.training.resuming import changed_options, read_resumed, renew
from ..engine.training.run_folder import RunFolder
from ..engine.training.sharded_checkpoints import ShardedSaver, restore_sharded
from ..engine.training.sharding import refuse_unsharded, shard_task, share_optimizer_state
from ..engine.training.stopping import StopRequest
from ..engine.training.tasks import CarriesRunState, Distillation, Mesa, create_task
from ..engine.training.trainer import Trainer
from ..engine.training.updater import Updater
from ..errors import UserError
from . import _auto
from ._options import DataOptions, DistillationOptions, OptimOptions, RunOptions, ScheduleOptions, TrainOptions, cut
from ._parser import import_modules

_logger = logging.getLogger(__name__)


def train(args: argparse.Namespace, stop: StopRequest, masking: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Train as the options say; with `masking`, the arguments of `create_pretraining`, by masked image modelling.

    Returns:
        The numbers of the last evaluation, and `best` and `best_epoch`.

    Raises:
        UserError: Something about options, data, checkpoint or run needs the user.
        Interrupted: A signal stopped the run after storing it.
    """
    args.workers = _auto.workers(args.workers)
    device, world = processes.start(args.device, args.dist_backend, args.dist_timeout, sharded=args.fsdp)
    setup_logging(world.primary)
    if processes.restarts():
        args.resume, args.overwrite = "auto", False
    trainer = build_trainer(args, device, world, masking)
    with log_file(trainer.folder.path / "train.log") if world.primary else nullcontext():
        result = trainer.fit(stop)
        if isinstance(trainer.saver, ShardedSaver) and world.primary:
            trainer.saver.write_files()
    return result


def build_trainer(
    args: argparse.Namespace,
    device: torch.device,
    world: processes.World,
    masking: Mapping[str, Any] | None = None,
) -> Trainer:
    """Check everything that can be checked before the first step, and build the trainer.

    Args:
        args: Parsed arguments. What they leave open is filled in, since they are stored with the run.
        device: Device of this process.
        world: Processes of the run.
        masking: Arguments of `create_pretraining`, for masked image modelling without labels.
    """
    import_modules(args.device_modules or (), "--import")
    run = cut(RunOptions, args)
    folder = RunFolder(run.output, run.experiment, resume=run.resume, overwrite=run.overwrite, options=vars(args))
    data = cut(DataOptions, args)
    train_data = open_split(data, training=True)
    mapping = given_class_map(data, training=True) or class_mapping(train_data)
    images = None if isinstance(train_data, IterableDataset) else len(train_data)
    args.batch_size = _auto.batch_size(args.batch_size, images, world.size)
    args.epochs = _auto.epochs(args.epochs, images)
    data = cut(DataOptions, args)
    eval_data = open_split(data, training=False, known=mapping)
    names = names_by_index(mapping)
    args.num_classes = 0 if masking is not None else count_classes(args.num_classes, names)
    options = TrainOptions.of(args)
    data, optim = options.data, options.optim
    if options.device.fsdp:
        if optim.mesa:
            raise UserError("--mesa reads the averaged weights whole, which --fsdp shares out; leave one of them out")
        refuse_unsharded(
            optimizer=optim.opt,
            clip_mode=optim.clip_mode if optim.clip_grad is not None else "norm",
            compiled=bool(options.model.torchcompile),
            distillation=options.distillation.kd_distill_type if options.distillation.kd_model_name else None,
            average_on_cpu=optim.model_ema and optim.model_ema_force_cpu,
            offload=options.device.fsdp_offload,
            lower_precision=options.device.lower_precision,
            device=device,
        )
    elif options.device.fsdp_offload:
        raise UserError("--fsdp-offload belongs to --fsdp; give both")

    model = create_model(options, args.num_classes)
    if removed := getattr(model, "removed", ()):  # by a pruned file that the run begins with
        args.model_kwargs = {**args.model_kwargs, "removed": list(removed)}
    config = data_config(vars(options.images), model.pretrained_cfg, options.model.arguments()["in_chans"])
    reader = image_reader(data, config)
    if world.primary:
        log_taken(train_data, "training", reader)
        log_taken(eval_data, "validation", reader)
    if options.model.sync_bn and world.size > 1:
        model = convert_sync_batchnorm(model)
    model.to(device, memory_format=torch.channels_last if options.model.channels_last else torch.preserve_format)
    _logger.info(
        "%s: %.2f M parameters on %s, %d process(es), input %s",
        options.model.model,
        sum(p.numel() for p in model.parameters()) / 1e6,
        device,
        world.size,
        " x ".join(map(str, config["input_size"])),
    )

    train_loader = create_loader(train_data, options, config, args.num_classes, device, world, reader)
    eval_loader = create_eval_loader(
        eval_data,
        config,
        batch_size=data.validation_batch_size or data.batch_size,
        workers=data.workers,
        device=device,
        world=world,
        pin_memory=data.pin_mem,
        bad_images=data.bad_images,
        reader=reader,
    )
    loss = building.loss_arguments(
        smoothing=optim.smoothing,
        soft_targets=train_loader.mixup is not None,
        bce_loss=optim.bce_loss,
        bce_sum=optim.bce_sum,
        bce_target_thresh=optim.bce_target_thresh,
    )
    if optim.class_weights:
        loss = building.weighted_loss(loss, class_weights(optim.class_weights, args.num_classes, train_data, names))
    task: CarriesRunState
    if masking is not None:
        task = create_pretraining(model, device, tuple(config["input_size"][1:]), **masking)
    else:
        task = create_task(model, loss, device, distillation(options.distillation), mesa(optim))
    rate, sentence = learning_rate(options, world.size)
    _logger.info(sentence)
    if optim.model_ema:
        task.setup_ema(
            decay=optim.model_ema_decay,
            use_warmup=optim.model_ema_warmup,
            device=torch.device("cpu") if optim.model_ema_force_cpu else None,
        )
    checkpoint, path = read_resumed(run.resume, folder, options.device.fsdp)
    if options.device.fsdp:
        if checkpoint is not None and path is not None and path.is_file():
            restore_task(task, checkpoint, path, options.model.model, None)
        shard_task(task, device, world, offload=options.device.fsdp_offload)
    optimizer = create_optimizer(task.get_trainable_module(), optim, rate)
    precision = options.device.lower_precision
    updater = Updater(
        task,
        optimizer,
        device,
        clip=optim.clip_grad,
        clip_mode=optim.clip_mode,
        scale_loss=precision == "float16",
    )
    updates_per_epoch = -(-len(train_loader) // optim.grad_accum_steps)
    scheduler, epochs = building.create_scheduler(optimizer, scheduler_kwargs(options.schedule), updates_per_epoch)

    # After the scheduler, which sets initial learning rates, so that the checkpoint's rates stand.
    changed: list[str] = []
    if checkpoint is not None and path is not None:
        fresh = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        kept = None if run.no_resume_opt else optimizer
        changed = changed_options(checkpoint, vars(args), continued_options()) if kept else []
        if not options.device.fsdp:
            restore_task(task, checkpoint, path, options.model.model, kept, updater)
        elif path.is_dir():
            restore_sharded(task, path, checkpoint, options.model.model, kept, updater)
        elif kept:
            restore_optimizer(optimizer, checkpoint, path, updater)
            share_optimizer_state(optimizer)
        if kept:
            past = hasattr(scheduler, "lr_scheduler")
            anew = past and not (task.run_state or {}).get("scheduler")
            renew(optimizer, fresh, hyperparameters=optim.opt_kwargs, rate_depends_on_past=past, anew=anew)
    if options.model.torchcompile:
        compilation = {"backend": options.model.torchcompile, "mode": options.model.torchcompile_mode}
        task.compile(**compilation)
        task.compile_ema(**compilation)
    if world.size > 1 and not options.device.fsdp:
        task.prepare_distributed(
            device_ids=[world.local_rank] if device.type == "cuda" else None,
            broadcast_buffers=not options.device.no_ddp_bb,
        )

    saver: AtomicSaver | ShardedSaver | None = None
    if options.device.fsdp:
        saver = ShardedSaver(
            folder.path,
            task,
            optimizer,
            updater,
            args,
            world,
            timeout=options.device.dist_timeout,
            decreasing=run.eval_metric == "loss",
            max_history=run.checkpoint_hist,
        )
    elif world.primary:
        saver = AtomicSaver(
            model=task.get_trainable_module(),
            task=task,
            optimizer=optimizer,
            args=args,
            amp_scaler=updater,
            checkpoint_dir=str(folder.path),
            recovery_dir=str(folder.path),
            decreasing=run.eval_metric == "loss",
            max_history=run.checkpoint_hist,
        )
    stored = task.run_state if path is not None and folder.holds(path) else None
    trainer = Trainer(
        name=options.model.model,
        task=task,
        optimizer=optimizer,
        updater=updater,
        scheduler=scheduler,
        sched_on_updates=options.schedule.sched_on_updates,
        epochs=epochs,
        train_loader=train_loader,
        eval_loader=eval_loader,
        folder=folder,
        saver=saver,
        trackers=Trackers(
            folder.path,
            tensorboard=run.log_tensorboard and world.primary,
            wandb=run.log_wandb and world.primary,
            project=run.wandb_project,
            wandb_id=(stored or {}).get("wandb"),
            config=vars(args),
        ),
        device=device,
        world=world,
        facts={
            "classes": names,
            "class_map": mapping,
            "class_map_given": bool(data.class_map),
            "image_mode": reader.mode,
            "pixel_range": listed(reader.pixel_range),
            "own_images": {"labels": data.labels, "val_fraction": data.val_fraction},
            "columns": {"input_key": data.input_key, "target_key": data.target_key},
            "data_config": {name: listed(value) for name, value in config.items()},
            "batch_size": data.batch_size,
            "processes": world.size,
            "grad_accum_steps": optim.grad_accum_steps,
            "seed": run.seed,
            "aug_repeats": options.augmentation.aug_repeats,
            "train_images": train_loader.num_samples,
        },
        seed=run.seed,
        lower_precision=precision,
        channels_last=options.model.channels_last,
        grad_accum_steps=optim.grad_accum_steps,
        max_nonfinite=run.max_nonfinite,
        eval_metric=run.eval_metric,
        evaluate_average=not optim.model_ema_force_cpu,
        dist_bn=run.dist_bn,
        log_interval=run.log_interval,
        val_interval=run.val_interval,
        recovery_interval=run.recovery_interval,
        **({} if masking is None else {"evaluate": task.evaluate}),
    )
    if checkpoint is not None and path is not None and not run.no_resume_opt:
        trainer.resume(checkpoint, path)
    else:
        trainer.start_at(0)
    if run.start_epoch is not None:
        trainer.start_at(run.start_epoch)
    if changed:
        _logger.info(
            "other options than the run of %s: %s; the learning rate of epoch %d is %.3e",
            path,
            ", ".join(changed),
            trainer.position.epoch,
            optimizer.param_groups[0]["lr"],
        )
    _logger.info(
        "%d epochs of %d steps, %d updates each; %s",
        epochs,
        len(train_loader),
        updates_per_epoch,
        f"continuing {path} at epoch {trainer.position.epoch}, step {trainer.position.step}"
        if trainer.resumed
        else "from the beginning",
    )
    return trainer


def open_split(data: DataOptions, training: bool, known: dict[str, int] | None = None) -> torch.utils.data.Dataset:
    """Open the training split, or the validation split with the class names that the training split has."""
    given = given_class_map(data, training)
    return open_by_names(
        data.dataset,
        data.data_dir,
        data.train_split if training else data.val_split,
        None if training or given else known,
        source="the training split",
        class_map=given or "",
        labels_file=data.labels,
        val_fraction=data.val_fraction,
        is_training=training,
        download=data.dataset_download,
        batch_size=data.batch_size,
        num_samples=data.train_num_samples if training else data.val_num_samples,
        seed=data.seed,
        repeats=data.epoch_repeats if training else 0,
        input_key=data.input_key,
        target_key=data.target_key,
    )


def given_class_map(data: DataOptions, training: bool) -> dict[str, int] | None:
    """Return the class map that the options name, or None."""
    split = data.train_split if training else data.val_split
    return read_class_map(data.class_map, data.data_dir, f"{data.data_dir}/{split}") if data.class_map else None


def image_reader(data: DataOptions, config: dict) -> ImageReader:
    """Return what brings images to the model's channels."""
    low_high = None if data.pixel_range is None else (data.pixel_range[0], data.pixel_range[1])
    return ImageReader(config["input_size"][0], data.input_img_mode, low_high, data.max_pixels, data.decoder)


def create_model(options: TrainOptions, num_classes: int) -> torch.nn.Module:
    """Create the model with the weights that it starts from."""
    chosen = options.model
    set_fast_norm(chosen.fast_norm)
    seed_everything(options.run.seed, "weights")
    initial = read(chosen.initial_checkpoint) if chosen.initial_checkpoint else None
    lacking = {"removed": initial.removed} if initial and initial.removed else {}
    model = building.create_training_model(
        chosen.model,
        num_classes,
        arguments=lacking | chosen.arguments(),
        pretrained=chosen.pretrained,
        pretrained_path=chosen.pretrained_path,
        head_init_scale=chosen.head_init_scale,
        head_init_bias=chosen.head_init_bias,
        grad_checkpointing=chosen.grad_checkpointing,
    )
    if initial:
        load(initial, model, classifier="anew")
    return model


def create_loader(
    dataset: torch.utils.data.Dataset,
    options: TrainOptions,
    config: dict,
    num_classes: int,
    device: torch.device,
    world: processes.World,
    reader: ImageReader | None = None,
) -> TrainLoader:
    """Create the training loader."""
    data, augmentation = options.data, options.augmentation
    mixup = create_mixup(
        num_classes,
        data.batch_size,
        mixup=augmentation.mixup,
        cutmix=augmentation.cutmix,
        cutmix_minmax=augmentation.cutmix_minmax,
        probability=augmentation.mixup_prob,
        switch_probability=augmentation.mixup_switch_prob,
        mode=augmentation.mixup_mode,
        smoothing=options.optim.smoothing,
    )
    erase = augmentation.reprob > 0 and not augmentation.no_aug
    return create_train_loader(
        dataset,
        config,
        device,
        world,
        batch_size=data.batch_size,
        workers=data.workers,
        seed=data.seed,
        augmentation=augmentation.transform(config),
        erasing=(augmentation.reprob, augmentation.remode, augmentation.recount) if erase else None,
        mixup=mixup,
        mixup_off_epoch=augmentation.mixup_off_epoch,
        repeats=augmentation.aug_repeats,
        pin_memory=data.pin_mem,
        bad_images=data.bad_images,
        reader=reader,
        num_samples=data.train_num_samples,
        sample_weights=building.balanced_samples(labels(dataset)) if data.balanced_sampling else None,
    )


def class_weights(
    asked: Sequence[str], num_classes: int, dataset: torch.utils.data.Dataset, names: list[str] | None
) -> torch.Tensor:
    """Return the weights of the classes (classes,), as given or inverse to how many images they have.

    Raises:
        UserError: The values are no numbers, or not as many as classes.
    """
    if list(asked) == ["balanced"]:
        weights = building.balanced_weights(labels(dataset), num_classes)
    else:
        try:
            weights = torch.tensor([float(value) for value in asked])
        except ValueError as error:
            raise UserError(f"--class-weights takes 'balanced' or numbers, got {' '.join(asked)}") from error
        if len(weights) != num_classes or not (weights >= 0).all() or not weights.isfinite().all():
            raise UserError(
                f"--class-weights holds {len(weights)} value(s), expected {num_classes} from 0 on, one per class"
                + (f" in the order {', '.join(names[:10])}" if names else "")
            )
    _logger.info("class weights: %s", ", ".join(f"{weight:.3g}" for weight in weights[:20].tolist()))
    return weights


def learning_rate(options: TrainOptions, world_size: int) -> tuple[float, str]:
    """Return the learning rate and a sentence that says where it comes from."""
    optim = options.optim
    return building.learning_rate(
        options.data.batch_size * world_size * optim.grad_accum_steps,
        lr=optim.lr,
        lr_base=optim.lr_base,
        lr_base_size=optim.lr_base_size,
        lr_base_scale=optim.lr_base_scale,
        opt=optim.opt,
    )


def create_optimizer(model: torch.nn.Module, optim: OptimOptions, rate: float) -> torch.optim.Optimizer:
    """Create the optimizer."""
    arguments = optimizer_kwargs(optim) | {"lr": rate} | dict(optim.opt_kwargs)
    return building.create_optimizer(model, optim.opt, arguments)


def continued_options() -> list[str]:
    """Return the names of options that a run may continue with other values of."""
    names = {field.name for group in (ScheduleOptions, OptimOptions) for field in fields(group)}
    return sorted(names | {"batch_size", "class_weights", "balanced_sampling"})


def distillation(options: DistillationOptions) -> Distillation | None:
    """Return what is learnt from a teacher, or None without one."""
    if not options.kd_model_name:
        return None
    return Distillation(
        teacher=options.kd_model_name,
        teacher_path=options.kd_pretrained_path,
        kind=options.kd_distill_type,
        loss_type=options.kd_loss_type,
        token_target=options.kd_token_distill_type,
        student_feature_dim=options.kd_student_feature_dim,
        teacher_feature_dim=options.kd_teacher_feature_dim,
        temperature=options.kd_temperature,
        distill_loss_weight=options.distill_loss_weight,
        task_loss_weight=options.task_loss_weight,
    )


def mesa(options: OptimOptions) -> Mesa | None:
    """Return what is learnt from the averaged weights, or None.

    Raises:
        UserError: There are none, or a value is out of range.
    """
    if not options.mesa:
        return None
    if options.mesa < 0 or options.mesa_temperature <= 0:
        raise UserError(
            f"--mesa and --mesa-temperature must be above 0, got {options.mesa} and {options.mesa_temperature}"
        )
    if not options.model_ema or options.model_ema_force_cpu:
        raise UserError("--mesa learns from the averaged weights: add --model-ema, without --model-ema-force-cpu")
    return Mesa(options.mesa, options.mesa_start_epoch, options.mesa_temperature)


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


def listed(value):
    """Return tuples as lists, which every reader of checkpoints and YAML accepts."""
    return list(value) if isinstance(value, tuple) else value
