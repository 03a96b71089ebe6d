"""timm's training tasks, carrying the position of the run in their checkpoint state."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)

from ...checkpoints import RUN_STATE
from ...errors import UserError


class CarriesRunState(TrainingTask):
    """Adds a dictionary `run_state` of plain values to what a timm task stores and restores.

    It rides in timm's `task_state` entry, so that the checkpoint stays readable for timm.
    """

    run_state: dict[str, Any] | None = None

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, counted from 0, of a run of so many."""

    def get_task_state(self, module: Any = None, ema: bool = False) -> dict[str, Any]:
        state = dict(super().get_task_state(module=module, ema=ema))
        if self.run_state is not None and not ema:
            state[RUN_STATE] = self.run_state
        return state

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: Any = None, ema: bool = False
    ) -> None:
        rest = dict(state or {})
        run_state = rest.pop(RUN_STATE, None)
        if not ema:
            self.run_state = run_state
        super().load_task_state(rest, strict=strict, module=module, ema=ema)


class Classification(CarriesRunState, ClassificationTask):
    """Classification by labels."""


@dataclass(frozen=True)
class Mesa:
    """A loss against the averaged weights' predictions ("MESA", arXiv:2205.14083, section 3.3).

    Attributes:
        weight: Of that loss beside the labels'.
        start_epoch: First epoch with it, counted from 0; None for a quarter of the run's.
        temperature: Of both softmaxes.
    """

    weight: float
    start_epoch: int | None = None
    temperature: float = 1.0


class AveragedTeacherClassification(CarriesRunState, ClassificationTask):
    """Classification by labels and, from some epoch on, by the predictions of the averaged weights.

    The term is the divergence KL(averaged || trained); its gradient is that of the cross entropy with the averaged
    predictions, which some recipes write.
    """

    def __init__(self, model: torch.nn.Module, mesa: Mesa, **options: Any):
        super().__init__(model, **options)
        self.mesa = mesa
        self.active = False

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        start = epochs // 4 if self.mesa.start_epoch is None else self.mesa.start_epoch
        self.active = epoch >= start

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        result = super().forward(input, target)
        if not self.active:
            return result
        averaged = cast(torch.nn.Module, self.get_eval_model(ema=True))
        with torch.no_grad():
            teacher = averaged.eval()(input)
        found, wanted = (
            (logits.float() / self.mesa.temperature).log_softmax(-1) for logits in (result["output"], teacher)
        )
        divergence = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return result | {"loss": result["loss"] + self.mesa.weight * divergence}


class LogitDistillation(CarriesRunState, LogitDistillationTask):
    """Classification by labels and a teacher's logits."""


class FeatureDistillation(CarriesRunState, FeatureDistillationTask):
    """Classification by labels and a teacher's features."""


class TokenDistillation(CarriesRunState, TokenDistillationTask):
    """Classification by labels and a teacher's logits at a distillation token."""


@dataclass(frozen=True)
class Distillation:
    """A teacher and what is learnt from it.

    Attributes:
        teacher: timm name.
        teacher_path: File of its weights, or None for the published ones.
        kind: What is distilled.
        loss_type: kl for logits; cosine, mse, ... for features.
        token_target: Target of the distillation token.
        student_feature_dim: Features of the student, None where they can be detected.
        teacher_feature_dim: Features of the teacher, None where they can be detected.
        temperature: Of the softmax.
        distill_loss_weight: Weight of the teacher's loss.
        task_loss_weight: Weight of the labels' loss; alone: the teacher gets the rest.
    """

    teacher: str
    teacher_path: str | None
    kind: Literal["logit", "feature", "token"]
    loss_type: str
    token_target: Literal["soft", "hard"]
    student_feature_dim: int | None
    teacher_feature_dim: int | None
    temperature: float
    distill_loss_weight: float | None
    task_loss_weight: float | None


def create_task(
    model: torch.nn.Module,
    loss: dict[str, Any] | torch.nn.Module,
    device: torch.device,
    distillation: Distillation | None = None,
    mesa: Mesa | None = None,
) -> CarriesRunState:
    """Return a task: plain classification, or with the averaged weights or a model as teacher.

    Args:
        model: Module to be trained.
        loss: Arguments of timm's loss factory, or the loss.
        device: Device.
        distillation: The teacher and what is learnt from it.
        mesa: What is learnt from the averaged weights, which the task must be set up to have.

    Raises:
        UserError: The teacher cannot be built or does not fit the student, or there are two.
    """
    chosen = {"criterion": loss} if isinstance(loss, torch.nn.Module) else {"criterion_kwargs": loss}
    if mesa is not None:
        if distillation is not None:
            raise UserError("--mesa and --kd-model-name are two teachers; leave one of them out")
        return AveragedTeacherClassification(model, mesa, **chosen, device=device, verbose=False)
    if distillation is None:
        return Classification(model, **chosen, device=device, verbose=False)
    options: dict[str, Any] = dict(
        student_model=model,
        teacher_model=distillation.teacher,
        **chosen,
        teacher_pretrained_path=distillation.teacher_path,
        distill_loss_weight=distillation.distill_loss_weight,
        task_loss_weight=distillation.task_loss_weight,
        device=device,
        verbose=False,
    )
    temperature = distillation.temperature
    try:
        if distillation.kind == "logit":
            return LogitDistillation(loss_type=distillation.loss_type, temperature=temperature, **options)
        if distillation.kind == "feature":
            return FeatureDistillation(
                student_feature_dim=distillation.student_feature_dim,
                teacher_feature_dim=distillation.teacher_feature_dim,
                **options,
            )
        return TokenDistillation(distill_type=distillation.token_target, temperature=temperature, **options)
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"distillation from {distillation.teacher!r} cannot be set up: {message}") from error
