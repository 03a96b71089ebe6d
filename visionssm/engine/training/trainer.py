"""The training loop."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import distribute_bn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ...errors import UserError
from ..data.loaders import TrainLoader
from ..data.processes import PeerLostError, World, any_process, is_peer_failure
from ..data.randomness import seed_everything
from ..data.workers import LoaderProcessError
from ..inference.evaluation import evaluate
from ..inference.models import autocast
from ..reports.plots import draw_curves
from ..reports.progress import Progress, Summary, Trackers, read_summary
from .checkpoints import AtomicSaver
from .run_folder import RunFolder
from .sharded_checkpoints import ShardedSaver
from .sharding import even, is_sharded, own_share
from .stopping import Interrupted, StopRequest
from .tasks import CarriesRunState
from .updater import Updater

_logger = logging.getLogger(__name__)

_FORMATS = {
    "loss": "loss {:.4f}",
    "top1": "top-1 {:.2f} %",
    "top5": "top-5 {:.2f} %",
    "psnr": "PSNR {:.3f} dB",
    "ssim": "SSIM {:.4f}",
}

STOP_POLL = 10  # updates between agreements on stopping when there are several processes


class NonFiniteError(UserError):
    """Too many updates in a row had a loss or gradient that is not finite."""


@dataclass
class Position:
    """Where a run stands: what its checkpoints store and a resumed run takes over.

    Attributes:
        loss_sum: Sum of the losses of the running epoch's images, on the device; this process's share.
        loss_count: Number of these images.
        epoch: Complete epochs.
        step: Batches of the running epoch that are done.
        updates: Updates of the weights since the beginning.
        skipped: Updates that were skipped because loss or gradient were not finite.
        skipped_in_a_row: Those since the last update.
    """

    loss_sum: torch.Tensor
    loss_count: int = 0
    epoch: int = 0
    step: int = 0
    updates: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def __str__(self) -> str:
        return f"epoch {self.epoch} after step {self.step}"

    def state(self) -> dict[str, Any]:
        """Return plain values by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"loss_sum": self.loss_sum.item()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        for f in fields(self):
            if f.name != "loss_sum":
                setattr(self, f.name, state[f.name])
        self.loss_sum.fill_(state["loss_sum"])

    def forget_losses(self) -> None:
        """Begin the sum of the losses anew."""
        self.loss_sum.zero_()
        self.loss_count = 0


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Runs epochs from any position on, and stores that position with every checkpoint.

    Attributes:
        name: What the model is called in the picture of the curves.
        task: timm task on the device, wrapped for DDP where needed.
        optimizer: Optimizer over the task's parameters.
        updater: Applies gradients.
        scheduler: timm scheduler or None.
        sched_on_updates: The learning rate changes after every update, not every epoch.
        epochs: Total number of epochs, as the scheduler counts them.
        train_loader: Training batches.
        eval_loader: Validation batches.
        folder: Run folder.
        saver: Writes checkpoints; None in all but the first process, unless every process writes a part.
        trackers: TensorBoard and the like.
        device: Device.
        world: Processes of the run.
        facts: Plain values stored with the run: classes, image preparation, sizes that resuming depends on.
        seed: Seed of what is drawn on the device.
        lower_precision: Lower precision of the forward pass, or None.
        channels_last: Give the model channels-last images.
        grad_accum_steps: Batches per update.
        max_nonfinite: Stop after so many updates in a row that are not finite.
        eval_metric: What best means.
        evaluate_average: Evaluate the averaged weights too, where the task has them.
        dist_bn: How the batch norms' statistics of all processes are made equal after an epoch; "" for not at all.
        log_interval: Batches between log lines.
        val_interval: Epochs between evaluations.
        recovery_interval: Updates between checkpoints inside an epoch; 0 for none.
        evaluate: Measures a model; arguments as those of the classifiers' `evaluate`.
    """

    name: str
    task: CarriesRunState
    optimizer: torch.optim.Optimizer
    updater: Updater
    scheduler: Scheduler | None
    sched_on_updates: bool
    epochs: int
    train_loader: TrainLoader
    eval_loader: Any
    folder: RunFolder
    saver: AtomicSaver | ShardedSaver | None
    trackers: Trackers
    device: torch.device
    world: World
    facts: dict[str, Any]
    seed: int
    lower_precision: str | None
    channels_last: bool
    grad_accum_steps: int
    max_nonfinite: int
    eval_metric: Literal["top1", "top5", "loss", "psnr", "ssim"]
    evaluate_average: bool
    dist_bn: Literal["broadcast", "reduce", ""]
    log_interval: int
    val_interval: int
    recovery_interval: int
    evaluate: Callable[..., dict[str, float]] = evaluate
    resumed: bool = field(default=False, init=False)
    continues_folder: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.autocast = autocast(self.device, self.lower_precision)
        self.steps = len(self.train_loader)
        self.updates_per_epoch = -(-self.steps // self.grad_accum_steps)
        self.position = Position(torch.zeros((), dtype=torch.float64, device=self.device))

    def run_state(self) -> dict[str, Any]:
        """Return everything outside weights and optimizer that the continuation depends on; plain values only."""
        return self.position.state() | {
            "scheduler": scheduler_state(self.scheduler),
            "wandb": self.trackers.wandb_id,
            "facts": self.facts | {"steps": self.steps, "stream": self.train_loader.layout()},
        }

    def resume(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Continue where a checkpoint stopped; its weights have been loaded into the task already.

        Raises:
            UserError: It stopped inside an epoch that was cut into other batches.
        """
        state = self.task.run_state
        self.resumed = True
        self.continues_folder = self.folder.holds(path)
        if state is None:  # a checkpoint of timm's own trainer
            self.start_at(checkpoint.get("epoch", -1) + 1)
        else:
            facts = state["facts"]
            # a stream that could not be entered anywhere begins its epoch again
            again = self.train_loader.sampler is None or bool(self.train_loader.layout()) != bool(facts.get("stream"))
            if state["step"] and not again:
                self._check_same_batches(facts, path)
            self.train_loader.adopt(facts.get("stream"), facts["batch_size"] * facts["processes"])
            self.position.load(state)
            if again:
                self.position.step = 0
            if not self.position.step or not self.world.primary:  # the sum covers all processes
                self.position.forget_losses()
            load_scheduler_state(self.scheduler, state["scheduler"])
            self.set_rate()
        if self.saver is not None and self.continues_folder:
            self.saver.restore(checkpoint, path)

    def set_rate(self) -> None:
        """Give the optimizer the rate that the schedule has for the position, whatever schedule a checkpoint followed.

        Only plateau's rate depends on the past; it stays.
        """
        position = self.position
        if self.scheduler is None or scheduler_state(self.scheduler):
            return
        if self.sched_on_updates:
            done = -(-position.step // self.grad_accum_steps)
            self.scheduler.step_update(position.epoch * self.updates_per_epoch + done)
        else:
            self.scheduler.step(position.epoch)

    def start_at(self, epoch: int) -> None:
        """Begin with an epoch, with the learning rate the schedule gives it."""
        position = self.position
        position.epoch, position.step, position.updates = epoch, 0, epoch * self.updates_per_epoch
        if self.scheduler is not None:
            if self.sched_on_updates:
                self.scheduler.step_update(position.updates)
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
        self.summary = Summary(self.folder.summary, self.position.epoch)
        result: dict[str, float] = {}
        try:
            while self.position.epoch < self.epochs:
                result = self._run_epoch(stop)
        except Interrupted:
            if isinstance(self.saver, ShardedSaver):
                self.saver.finish()
            raise
        except LoaderProcessError as error:
            raise LoaderProcessError(
                f"{error} in {self.position}; lower --workers or --batch-size and continue with --resume auto"
            ) from error
        except RuntimeError as error:
            if self.world.size > 1 and is_peer_failure(error):
                raise PeerLostError(
                    f"process {self.world.rank} lost contact with another one in {self.position} "
                    f"({str(error).splitlines()[0][:200]}); restart all with --resume auto"
                ) from error
            raise
        if isinstance(self.saver, ShardedSaver):
            self.saver.finish()
        if self.saver is not None and self.saver.best_metric is not None:
            result |= {"best": self.saver.best_metric, "best_epoch": self.saver.best_epoch or 0}
            _logger.info(
                "best %s %.4g in epoch %d (model_best.pth.tar); results in %s",
                self._metric(),
                self.saver.best_metric,
                self.saver.best_epoch,
                self.folder.path,
            )
        return result

    def _run_epoch(self, stop: StopRequest) -> dict[str, float]:
        epoch, started = self.position.epoch, time.perf_counter()
        self._train_epoch(stop)
        rate = sum(group["lr"] for group in self.optimizer.param_groups) / len(self.optimizer.param_groups)
        if self.world.size > 1 and self.dist_bn:
            distribute_bn(self.task.get_trainable_module(), self.world.size, self.dist_bn == "reduce")
            if self._has_average():
                distribute_bn(self.task.get_trainable_module(ema=True), self.world.size, self.dist_bn == "reduce")
        train = {"loss": self._mean_loss()}
        last = epoch + 1 == self.epochs
        evaluation: dict[str, float] = {}
        metric = None
        if last or (epoch + 1) % self.val_interval == 0:
            evaluation = self._evaluate(stop)
            ema_metric = evaluation.get(f"ema_{self.eval_metric}")
            metric = evaluation[self.eval_metric] if ema_metric is None else ema_metric
        self.position.epoch, self.position.step = epoch + 1, 0
        self.position.forget_losses()
        if self.scheduler is not None:
            self.scheduler.step(epoch + 1, metric)
        if self.world.primary:
            self.folder.claim(keep=self.continues_folder)
            self.summary.add(epoch, train, evaluation, rate)
        if self.saver is not None:
            self.task.run_state = self.run_state()
            self.saver.save_checkpoint(epoch, metric)
        if self.world.primary:
            rows = read_summary(self.folder.summary)
            draw_curves(rows, self.folder.curve, f"{self.name}: {epoch + 1} of {self.epochs} epochs")
            self.trackers.log({name: value for name, value in rows[-1].items() if name != "epoch"}, epoch)
            self._log_epoch(epoch, train, evaluation, rate, time.perf_counter() - started)
        if stop.agreed(self.world, self.device):
            raise stop.interruption()
        return evaluation

    def _train_epoch(self, stop: StopRequest) -> None:
        position = self.position
        self.task.train()
        self.task.begin_epoch(position.epoch, self.epochs)
        accumulate = self.grad_accum_steps
        left_over = self.steps % accumulate
        progress = Progress(
            f"epoch {position.epoch}/{self.epochs - 1}",
            self.steps,
            first=position.step,
            interval=self.log_interval,
            remaining=(self.epochs - position.epoch - 1) * self.steps,
            enabled=self.world.primary,
        )
        if position.step == self.steps:
            return  # interrupted during the evaluation
        for step, (images, labels) in enumerate(self.train_loader.epoch(position.epoch, position.step), position.step):
            seed_everything(self.seed, "step", position.epoch, step, self.world.rank)
            images, labels = self.train_loader.augment(images, labels)
            if self.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            in_update = left_over if step >= self.steps - left_over else accumulate
            updates_now = (step + 1) % accumulate == 0 or step + 1 == self.steps
            if updates_now:
                loss = self._backward(images, labels, in_update)
            else:
                with self.task.no_sync():
                    loss = self._backward(images, labels, in_update)
            position.loss_sum += loss.double() * len(images)
            position.loss_count += len(images)
            if updates_now:
                self._update(step)
            progress.advance(len(images) * self.world.size, partial(self._shown, loss))
            if updates_now:
                position.step = step + 1
                self._store_if_asked(stop)
        progress.close()
        position.step = self.steps

    def _shown(self, loss: torch.Tensor) -> dict[str, float]:
        shown = {"loss": loss.item(), "lr": self.optimizer.param_groups[0]["lr"]}
        return shown | ({"skipped": self.position.skipped} if self.position.skipped else {})

    def _backward(self, images: torch.Tensor, labels: torch.Tensor, in_update: int) -> torch.Tensor:
        with self.autocast():
            loss = self.task(images, labels)["loss"]
        self.updater.backward(loss / in_update)
        return loss.detach()

    def _update(self, step: int) -> None:
        position = self.position
        if self.updater.step():
            position.skipped_in_a_row = 0
            position.updates += 1
            self.task.update_ema(step=position.updates)
        else:
            position.skipped += 1
            position.skipped_in_a_row += 1
            if position.skipped_in_a_row >= self.max_nonfinite:
                raise NonFiniteError(
                    f"loss or gradient not finite in {position.skipped_in_a_row} update(s) in a row, the last at epoch "
                    f"{position.epoch}, step {step + 1} of {self.steps}; {self.updater.largest_weights()}; "
                    f"{self._keep_weights(step)}"
                )
        if self.scheduler is not None:
            self.scheduler.step_update(
                num_updates=position.epoch * self.updates_per_epoch + -(-(step + 1) // self.grad_accum_steps)
            )

    def _store_if_asked(self, stop: StopRequest) -> None:
        update = -(-self.position.step // self.grad_accum_steps)
        interval = self.recovery_interval
        # At the end of an epoch the epoch's own checkpoint follows.
        if interval and update % interval == 0 and self.position.step < self.steps:
            self.store_position()
        if (self.world.size == 1 or update % STOP_POLL == 0) and stop.agreed(self.world, self.device):
            self.store_position()
            raise stop.interruption()

    def _keep_weights(self, step: int) -> str:
        """Store the weights of the last finite update, and say what to do with them."""
        module = cast(torch.nn.Module, self.task.get_trainable_module())
        bad = not all(own_share(p).isfinite().all() for p in module.parameters())
        if any_process(bad, self.world, self.device):
            return "the weights are not finite either, so only earlier checkpoints are good"
        self.position.step, self.position.skipped_in_a_row = step + 1, 0
        self.store_position()
        return (
            f"the weights of the last finite update are stored in {self.folder.path}; continue with --resume auto and "
            "--clip-grad or --amp-dtype bfloat16, or begin from them with --initial-checkpoint and a lower --lr"
        )

    def store_position(self) -> None:
        """Store a checkpoint inside the epoch."""
        if self.world.size > 1:  # only the first process writes, so it takes the sums of all
            totals = self._loss_totals()
            self.position.forget_losses()
            if self.world.primary:
                self.position.loss_sum.copy_(totals[0])
                self.position.loss_count = int(totals[1])
        if self.world.primary:
            self.folder.claim(keep=self.continues_folder)
        if self.saver is not None:
            self.task.run_state = self.run_state()
            path = self.saver.save_inside_epoch(self.position.epoch, self.position.step)
            _logger.info("stored %s", path)

    def _loss_totals(self) -> torch.Tensor:
        loss_sum = self.position.loss_sum
        totals = torch.stack([loss_sum, loss_sum.new_tensor(float(self.position.loss_count))])
        if self.world.size > 1:
            dist.all_reduce(totals)
        return totals

    def _mean_loss(self) -> float:
        totals = self._loss_totals()
        return (totals[0] / totals[1].clamp(min=1)).item()

    def _evaluate(self, stop: StopRequest) -> dict[str, float]:
        def on_batch(logits: torch.Tensor, labels: torch.Tensor) -> None:
            if self.world.size == 1 and stop.agreed(self.world, self.device):
                self.store_position()
                raise stop.interruption()

        options: dict[str, Any] = dict(autocast=self.autocast, on_batch=on_batch, channels_last=self.channels_last)
        sharded = is_sharded(self.task.get_trainable_module())

        def batches() -> Any:
            if not sharded:
                return self.eval_loader
            return even(self.eval_loader, self.world, self.device, self.facts["data_config"]["input_size"])

        result = self.evaluate(without_ddp(self.task.get_eval_model()), batches(), self.device, **options)
        if self._has_average():
            averaged = self.evaluate(without_ddp(self.task.get_eval_model(ema=True)), batches(), self.device, **options)
            result |= {f"ema_{name}": value for name, value in averaged.items()}
        return result

    def _log_epoch(self, epoch: int, train: dict, evaluation: dict, rate: float, seconds: float) -> None:
        parts = [f"epoch {epoch}/{self.epochs - 1} done in {seconds:.1f} s: train loss {train['loss']:.4f}"]
        few = self.facts.get("classes") and len(self.facts["classes"]) <= 5  # where top-5 says nothing
        if evaluation:
            shown = (
                text.format(evaluation[name])
                for name, text in _FORMATS.items()
                if name in evaluation and not (few and name == "top5")
            )
            parts.append(f"validation {', '.join(shown)}")
        for name in ("top1", "psnr"):
            if f"ema_{name}" in evaluation:
                parts.append(f"averaged weights {_FORMATS[name].format(evaluation[f'ema_{name}'])}")
        if self.saver is not None and self.saver.best_metric is not None:
            parts.append(f"best {self._metric()} {self.saver.best_metric:.4g} in epoch {self.saver.best_epoch}")
        if self.position.skipped:
            parts.append(f"{self.position.skipped} updates skipped so far")
        _logger.info("%s; lr %.3e", "; ".join(parts), rate)

    def _metric(self) -> str:
        return f"{self.eval_metric} of the averaged weights" if self._has_average() else self.eval_metric

    def _has_average(self) -> bool:
        return self.evaluate_average and self.task.has_ema()

    def _check_same_batches(self, stored: dict[str, Any], path: Path) -> None:
        def compare(what: str, before: Any, now: Any) -> None:
            if before != now:
                raise UserError(
                    f"checkpoint {path} stopped inside an epoch with {what} {before}, found {now}; continue with the "
                    "same, or from the last complete epoch with --resume FILE"
                )

        if stored["processes"] == self.facts["processes"]:
            compare("batch_size", stored["batch_size"], self.facts["batch_size"])
        else:  # other processes may share a step, if it has as many images
            images = [facts["batch_size"] * facts["processes"] for facts in (stored, self.facts)]
            compare("batch_size x processes", *images)
            compare("steps per epoch", stored.get("steps", self.steps), self.steps)
        for name in ("grad_accum_steps", "seed", "aug_repeats", "train_images"):
            compare(name, stored[name], self.facts[name])


def without_ddp(module: Any) -> torch.nn.Module:
    """Return the module inside DDP; evaluating it needs no equal number of batches on all processes."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def scheduler_state(scheduler: Scheduler | None) -> dict[str, Any]:
    """Return what a scheduler remembers; only plateau does, the others are functions of the epoch."""
    inner = getattr(scheduler, "lr_scheduler", None)
    return inner.state_dict() if inner is not None else {}


def load_scheduler_state(scheduler: Scheduler | None, state: dict[str, Any]) -> None:
    """Restore the past that `scheduler_state` returned, if the schedule has one; its settings stay."""
    inner = getattr(scheduler, "lr_scheduler", None)
    if inner is not None:
        past = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
        inner.load_state_dict({name: state[name] for name in past if name in state})
