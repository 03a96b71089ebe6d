"""timm's training tasks, carrying the position of the run in their checkpoint state."""

import argparse
from typing import Any

import torch
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)

from ...errors import UserError

RUN_STATE = "run"


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


def create_task(args: argparse.Namespace, model: torch.nn.Module, loss: dict, device: torch.device) -> TrainingTask:
    """Return the task that the options describe: plain classification, or distillation from `--kd-model-name`.

    Raises:
        UserError: The teacher cannot be built or does not fit the student.
    """
    if not args.kd_model_name:
        return Classification(model, criterion_kwargs=loss, device=device, verbose=False)
    options: dict[str, Any] = dict(
        student_model=model,
        teacher_model=args.kd_model_name,
        criterion_kwargs=loss,
        teacher_pretrained_path=args.kd_pretrained_path,
        distill_loss_weight=args.distill_loss_weight,
        task_loss_weight=args.task_loss_weight,
        device=device,
        verbose=False,
    )
    try:
        if args.kd_distill_type == "logit":
            return LogitDistillation(loss_type=args.kd_loss_type, temperature=args.kd_temperature, **options)
        if args.kd_distill_type == "feature":
            return FeatureDistillation(
                student_feature_dim=args.kd_student_feature_dim,
                teacher_feature_dim=args.kd_teacher_feature_dim,
                **options,
            )
        return TokenDistillation(distill_type=args.kd_token_distill_type, temperature=args.kd_temperature, **options)
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"distillation from {args.kd_model_name!r} cannot be set up: {message}") from error
