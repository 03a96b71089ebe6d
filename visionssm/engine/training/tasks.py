"""timm's training tasks, carrying the position of the run in their checkpoint state."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
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
) -> CarriesRunState:
    """Return a task: plain classification, or distillation from a teacher.

    Args:
        model: Module to be trained.
        loss: Arguments of timm's loss factory, or the loss.
        device: Device.
        distillation: The teacher and what is learnt from it.

    Raises:
        UserError: The teacher cannot be built or does not fit the student.
    """
    chosen = {"criterion": loss} if isinstance(loss, torch.nn.Module) else {"criterion_kwargs": loss}
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
