"""Focal loss of independent classes (arXiv:1708.02002, section 3.2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import widen

__all__ = ["sigmoid_focal_loss_backward", "sigmoid_focal_loss_forward"]


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss of each class of each sample.

    Args:
        input: Logits (n, c).
        target: Class (n,) of each sample, c for none.
        weight: Empty.
        output: (n, c); receives the loss.
        gamma: Exponent that quiets what is right already.
        alpha: Share of the positive class.

    Raises:
        NotImplementedError: classes have weights.
    """
    _check(weight)
    x, positive = widen(input), _is_target(input, target)
    # of the class if it is the target, of its absence if not
    log_p, p_wrong = _terms(torch.where(positive, x, -x))
    output.copy_(-_share(positive, alpha, x.dtype) * p_wrong**gamma * log_p)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of `sigmoid_focal_loss_forward` for a gradient of one, written to `grad_input` (n, c)."""
    _check(weight)
    x, positive = widen(input), _is_target(input, target)
    log_p, p_wrong = _terms(torch.where(positive, x, -x))
    slope = p_wrong**gamma * (gamma * (1 - p_wrong) * log_p - p_wrong)
    grad_input.copy_(_share(positive, alpha, x.dtype) * torch.where(positive, slope, -slope))


def _check(weight: Tensor) -> None:
    if weight.numel():
        raise NotImplementedError("sigmoid_focal_loss with class weights needs mmcv compiled; see docs/openmmlab.md")


def _is_target(input: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def _terms(x: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the probability of being right, at least that of the smallest number; probability of being wrong."""
    return F.logsigmoid(x).clamp(min=math.log(torch.finfo(torch.float32).tiny)), torch.sigmoid(-x)


def _share(positive: Tensor, alpha: float, dtype: torch.dtype) -> Tensor:
    return torch.where(positive, alpha, 1 - alpha).to(dtype)
