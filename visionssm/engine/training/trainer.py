"""The training loop."""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from timm.utils import distribute_bn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ...errors import UserError
from ..data.loaders import TrainLoader
from ..data.processes import PeerLostError, World, is_peer_failure
from ..data.randomness import seed_everything
from ..data.workers import LoaderProcessError
from ..inference.evaluation import evaluate
from ..reports.plots import draw_curves
from ..reports.progress import Progress, Summary, Trackers, read_summary
from .checkpoints import AtomicSaver
from .run_folder import RunFolder
from .stopping import Interrupted, StopRequest
from .updater import NonFiniteError, Updater, autocast_for

_logger = logging.getLogger(__name__)

STOP_POLL = 10  # updates between agreements on stopping when there are several processes


class Trainer:
    """Runs epochs from any position on, and stores that position with every checkpoint.

    Args:
        args: Training options.
        task: timm task on the device, wrapped for DDP where needed.
        optimizer: Optimizer over the task's parameters.
        updater: Applies gradients.
        scheduler: timm scheduler or None.
        epochs: Total number of epochs, as the scheduler counts them.
        train_loader: Training batches.
        eval_loader: Validation batches.
        folder: Run folder.
        device: Device.
        world: Processes of the run.
        facts: Plain values stored with the run: classes, image preparation, sizes that resuming depends on.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        *,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        updater: Updater,
        scheduler: Scheduler | None,
        epochs: int,
        train_loader: TrainLoader,
        eval_loader: Any,
        folder: RunFolder,
        device: torch.device,
        world: World,
        facts: dict[str, Any],
    ):
        self.args, self.task, self.optimizer, self.updater, self.scheduler = args, task, optimizer, updater, scheduler
        self.epochs, self.train_loader, self.eval_loader = epochs, train_loader, eval_loader
        self.folder, self.device, self.world, self.facts = folder, device, world, facts
        self.autocast = autocast_for(args, device)
        self.steps = len(train_loader)
        self.updates_per_epoch = -(-self.steps // args.grad_accum_steps)
        self.epoch = self.step = self.updates = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.loss_count = 0
        self.resumed = self.continues_folder = False
        self.saver: AtomicSaver | None = None
        if world.primary:
            self.saver = AtomicSaver(
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

    def run_state(self) -> dict[str, Any]:
        """Return everything outside weights and optimizer that the continuation depends on; plain values only."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "updates": self.updates,
            "loss_sum": self.loss_sum.item(),
            "loss_count": self.loss_count,
            "skipped": self.updater.skipped,
            "skipped_in_a_row": self.updater.skipped_in_a_row,
            "scheduler": scheduler_state(self.scheduler),
            "facts": self.facts,
        }

    def resume(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Continue where a checkpoint stopped; its weights have been loaded into the task already.

        Raises:
            UserError: It stopped inside an epoch that was cut into other batches.
        """
        state = self.task.run_state
        self.resumed = True
        self.continues_folder = path.resolve().parent == self.folder.path.resolve()
        if state is None:  # a checkpoint of timm's own trainer
            self.epoch = checkpoint.get("epoch", -1) + 1
            self.start_at(self.epoch)
        else:
            if state["step"]:
                self._check_same_batches(state["facts"], path)
            self.epoch, self.step, self.updates = state["epoch"], state["step"], state["updates"]
            if self.train_loader.sampler is None:
                self.step = 0  # a stream has no position to return to
            if self.step and self.world.primary:  # the sum covers all processes
                self.loss_sum.fill_(state["loss_sum"])
                self.loss_count = state["loss_count"]
            self.updater.skipped = state["skipped"]
            self.updater.skipped_in_a_row = state["skipped_in_a_row"]
            load_scheduler_state(self.scheduler, state["scheduler"])
        if self.saver is not None and self.continues_folder:
            self.saver.restore(checkpoint, path)

    def start_at(self, epoch: int) -> None:
        """Begin with an epoch, with the learning rate the schedule gives it."""
        self.epoch, self.step, self.updates = epoch, 0, epoch * self.updates_per_epoch
        if self.scheduler is not None:
            if self.args.sched_on_updates:
                self.scheduler.step_update(self.updates)
            else:
                self.scheduler.step(epoch)

    def fit(self, stop: StopRequest) -> dict[str, float]:
        """Train to the last epoch.

        Returns:
            The numbers of the last evaluation, and `best` and `best_epoch`.

        Raises:
            Interrupted: A signal came; a checkpoint was stored.
            UserError: The run cannot go on; the last stored checkpoint is good.
        """
        self.summary = Summary(self.folder.summary, self.epoch)
        self.trackers = Trackers(
            self.folder.path,
            tensorboard=self.args.log_tensorboard and self.world.primary,
            wandb=self.args.log_wandb and self.world.primary,
            project=self.args.wandb_project,
            config=vars(self.args),
        )
        result: dict[str, float] = {}
        try:
            while self.epoch < self.epochs:
                result = self._run_epoch(stop)
        except LoaderProcessError as error:
            raise LoaderProcessError(
                f"{error} in epoch {self.epoch + 1} after step {self.step}; lower --workers or --batch-size and "
                "continue with --resume auto"
            ) from error
        except RuntimeError as error:
            if self.world.size > 1 and is_peer_failure(error):
                raise PeerLostError(
                    f"process {self.world.rank} lost contact with another one in epoch {self.epoch + 1} after step "
                    f"{self.step} ({str(error).splitlines()[0][:200]}); restart all with --resume auto"
                ) from error
            raise
        if self.saver is not None and self.saver.best_metric is not None:
            result |= {"best": self.saver.best_metric, "best_epoch": self.saver.best_epoch}
            _logger.info(
                "best %s %.4g in epoch %d; results in %s",
                self._metric(),
                self.saver.best_metric,
                self.saver.best_epoch + 1,
                self.folder.path,
            )
        return result

    def _run_epoch(self, stop: StopRequest) -> dict[str, float]:
        epoch, started = self.epoch, time.perf_counter()
        self._train_epoch(stop)
        rate = sum(group["lr"] for group in self.optimizer.param_groups) / len(self.optimizer.param_groups)
        if self.world.size > 1 and self.args.dist_bn:
            distribute_bn(self.task.get_trainable_module(), self.world.size, self.args.dist_bn == "reduce")
            if self.task.has_ema() and not self.args.model_ema_force_cpu:
                distribute_bn(self.task.get_trainable_module(ema=True), self.world.size, self.args.dist_bn == "reduce")
        train = {"loss": self._mean_loss()}
        last = epoch + 1 == self.epochs
        evaluation: dict[str, float] = {}
        metric = None
        if last or (epoch + 1) % self.args.val_interval == 0:
            evaluation = self._evaluate(stop)
            ema_metric = evaluation.get(f"ema_{self.args.eval_metric}")
            metric = evaluation[self.args.eval_metric] if ema_metric is None else ema_metric
        self.epoch, self.step = epoch + 1, 0
        self.loss_sum.zero_()
        self.loss_count = 0
        if self.scheduler is not None:
            self.scheduler.step(epoch + 1, metric)
        if self.saver is not None:
            self.folder.claim(keep=self.continues_folder)
            self.summary.add(epoch, train, evaluation, rate)
            self.task.run_state = self.run_state()
            self.saver.save_checkpoint(epoch, metric)
            rows = read_summary(self.folder.summary)
            draw_curves(rows, self.folder.curve, f"{self.args.model}: {epoch + 1} of {self.epochs} epochs")
            self.trackers.log({name: value for name, value in rows[-1].items() if name != "epoch"}, epoch)
            self._log_epoch(epoch, train, evaluation, rate, time.perf_counter() - started)
        if stop.agreed(self.world, self.device):
            raise Interrupted(stop.signal_number)
        return evaluation

    def _train_epoch(self, stop: StopRequest) -> None:
        self.task.train()
        accumulate = self.args.grad_accum_steps
        left_over = self.steps % accumulate
        progress = Progress(
            f"epoch {self.epoch + 1}/{self.epochs}",
            self.steps,
            first=self.step,
            interval=self.args.log_interval,
            remaining=(self.epochs - self.epoch - 1) * self.steps,
            enabled=self.world.primary,
        )
        if self.step == self.steps:
            return  # interrupted during the evaluation
        for step, (images, labels) in enumerate(self.train_loader.epoch(self.epoch, self.step), self.step):
            seed_everything(self.args.seed, "step", self.epoch, step, self.world.rank)
            images, labels = self.train_loader.augment(images, labels)
            if self.args.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            in_update = left_over if step >= self.steps - left_over else accumulate
            updates_now = (step + 1) % accumulate == 0 or step + 1 == self.steps
            if updates_now:
                loss = self._backward(images, labels, in_update)
            else:
                with self.task.no_sync():
                    loss = self._backward(images, labels, in_update)
            self.loss_sum += loss.double() * len(images)
            self.loss_count += len(images)
            if updates_now:
                self._update(step)
            progress.advance(
                len(images) * self.world.size,
                loss=loss.item(),
                lr=self.optimizer.param_groups[0]["lr"],
                **({"skipped": self.updater.skipped} if self.updater.skipped else {}),
            )
            if updates_now:
                self.step = step + 1
                self._store_if_asked(stop)
        progress.close()
        self.step = self.steps

    def _backward(self, images: torch.Tensor, labels: torch.Tensor, in_update: int) -> torch.Tensor:
        with self.autocast():
            loss = self.task(images, labels)["loss"]
        self.updater.backward(loss / in_update)
        return loss.detach()

    def _update(self, step: int) -> None:
        try:
            finite = self.updater.step(f"epoch {self.epoch + 1}, step {step + 1} of {self.steps}")
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {self._keep_weights(step)}") from None
        if finite:
            self.updates += 1
            self.task.update_ema(step=self.updates)
        if self.scheduler is not None:
            self.scheduler.step_update(
                num_updates=self.epoch * self.updates_per_epoch
                + (step + 1 + self.args.grad_accum_steps - 1) // self.args.grad_accum_steps
            )

    def _store_if_asked(self, stop: StopRequest) -> None:
        update = -(-self.step // self.args.grad_accum_steps)
        interval = self.args.recovery_interval
        # At the end of an epoch the epoch's own checkpoint follows.
        if interval and update % interval == 0 and self.step < self.steps:
            self.store_position()
        if (self.world.size == 1 or update % STOP_POLL == 0) and stop.agreed(self.world, self.device):
            self.store_position()
            raise Interrupted(stop.signal_number)

    def _keep_weights(self, step: int) -> str:
        """Store the weights of the last finite update, and say what to do with them."""
        if not all(p.isfinite().all() for p in self.task.get_trainable_module().parameters()):
            return "the weights are not finite either, so only earlier checkpoints are good"
        self.step, self.updater.skipped_in_a_row = step + 1, 0
        self.store_position()
        return (
            f"the weights of the last finite update are stored in {self.folder.path}; continue with --resume auto and "
            "--clip-grad or --amp-dtype bfloat16, or begin from them with --initial-checkpoint and a lower --lr"
        )

    def store_position(self) -> None:
        """Store a checkpoint inside the epoch."""
        if self.world.size > 1:  # only the first process writes, so it takes the sums of all
            totals = torch.stack([self.loss_sum, self.loss_sum.new_tensor(float(self.loss_count))])
            dist.all_reduce(totals)
            self.loss_sum.zero_()
            self.loss_count = 0
            if self.world.primary:
                self.loss_sum.copy_(totals[0])
                self.loss_count = int(totals[1])
        if self.saver is not None:
            self.folder.claim(keep=self.continues_folder)
            self.task.run_state = self.run_state()
            path = self.saver.save_inside_epoch(self.epoch, self.step)
            _logger.info("stored %s", path)

    def _mean_loss(self) -> float:
        totals = torch.stack([self.loss_sum, self.loss_sum.new_tensor(float(self.loss_count))])
        if self.world.size > 1:
            dist.all_reduce(totals)
        return (totals[0] / totals[1].clamp(min=1)).item()

    def _evaluate(self, stop: StopRequest) -> dict[str, float]:
        def on_batch(logits: torch.Tensor) -> None:
            if self.world.size == 1 and stop.agreed(self.world, self.device):
                self.store_position()
                raise Interrupted(stop.signal_number)

        options = dict(autocast=self.autocast, on_batch=on_batch, channels_last=self.args.channels_last)
        result = evaluate(without_ddp(self.task.get_eval_model()), self.eval_loader, self.device, **options)
        if self.task.has_ema() and not self.args.model_ema_force_cpu:
            averaged = evaluate(self.task.get_eval_model(ema=True), self.eval_loader, self.device, **options)
            result |= {f"ema_{name}": value for name, value in averaged.items()}
        return result

    def _log_epoch(self, epoch: int, train: dict, evaluation: dict, rate: float, seconds: float) -> None:
        parts = [f"epoch {epoch + 1}/{self.epochs} done in {seconds:.1f} s: train loss {train['loss']:.4f}"]
        if evaluation:
            parts.append(
                f"validation loss {evaluation['loss']:.4f}, top-1 {evaluation['top1']:.2f} %, "
                f"top-5 {evaluation['top5']:.2f} %"
            )
        if "ema_top1" in evaluation:
            parts.append(f"averaged weights top-1 {evaluation['ema_top1']:.2f} %")
        if self.saver.best_metric is not None:
            parts.append(f"best {self._metric()} {self.saver.best_metric:.4g} in epoch {self.saver.best_epoch + 1}")
        if self.updater.skipped:
            parts.append(f"{self.updater.skipped} updates skipped so far")
        _logger.info("%s; lr %.3e", "; ".join(parts), rate)

    def _metric(self) -> str:
        averaged = self.task.has_ema() and not self.args.model_ema_force_cpu
        return f"{self.args.eval_metric} of the averaged weights" if averaged else self.args.eval_metric

    def _check_same_batches(self, stored: dict[str, Any], path: Path) -> None:
        for name in ("batch_size", "processes", "grad_accum_steps", "seed", "aug_repeats", "train_images"):
            if stored[name] != self.facts[name]:
                raise UserError(
                    f"checkpoint {path} stopped inside an epoch with {name} {stored[name]}, found "
                    f"{self.facts[name]}; continue with the same, or from the last complete epoch "
                    "with --resume FILE"
                )


def without_ddp(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module inside DDP; evaluating it needs no equal number of batches on all processes."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def scheduler_state(scheduler: Scheduler | None) -> dict[str, Any]:
    """Return what a scheduler remembers; only plateau does, the others are functions of the epoch."""
    inner = getattr(scheduler, "lr_scheduler", None)
    return inner.state_dict() if inner is not None else {}


def load_scheduler_state(scheduler: Scheduler | None, state: dict[str, Any]) -> None:
    """Restore what `scheduler_state` returned."""
    if state:
        scheduler.lr_scheduler.load_state_dict(state)
