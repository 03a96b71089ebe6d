"""One optimizer update: backward, gradient check, clipping, step."""

import argparse
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from timm.task import TrainingTask
from timm.utils import dispatch_clip_grad

from ...errors import UserError


def autocast_for(args: argparse.Namespace, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Return a factory of the forward pass's precision context."""
    if not args.amp:
        return nullcontext
    return partial(torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype))


class NonFiniteError(UserError):
    """Too many updates in a row had a loss or gradient that is not finite."""


class Updater:
    """Accumulates gradients and updates the weights, skipping updates whose gradient is not finite.

    The check is on the norm of the whole gradient: it sees a bad loss as well as an overflow in the backward pass, and
    after DDP's reduction every process sees the same value, so all skip together. fp16 AMP scales the loss and counts
    as skipped what the scaler would skip too.
    """

    state_dict_key = "amp_scaler"  # timm's name of the loss scale in a checkpoint

    def __init__(
        self, task: TrainingTask, optimizer: torch.optim.Optimizer, args: argparse.Namespace, device: torch.device
    ):
        self.task = task
        self.optimizer = optimizer
        self.clip, self.clip_mode = args.clip_grad, args.clip_mode
        self.limit = args.max_nonfinite
        self.skipped_in_a_row = 0
        self.skipped = 0
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.amp and args.amp_dtype == "float16")

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss."""
        self.scaler.scale(loss).backward()

    def step(self, place: str) -> bool:
        """Update the weights and clear the gradients.

        Args:
            place: Where the run is, for the error.

        Returns:
            False when the update was skipped because its gradient is not finite.

        Raises:
            NonFiniteError: That happened too often in a row.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        finite = bool(torch.isfinite(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])))
        if finite and self.clip is not None:
            dispatch_clip_grad(
                self.task.get_clip_parameters(exclude_head="agc" in self.clip_mode),
                value=self.clip,
                mode=self.clip_mode,
            )
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # skips by itself what is not finite
            self.scaler.update()
        self.optimizer.zero_grad()
        if finite:
            self.skipped_in_a_row = 0
            return True
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.limit:
            raise NonFiniteError(
                f"loss or gradient not finite in {self.skipped_in_a_row} update(s) in a row, the last "
                f"at {place}; {self.largest_weights()}"
            )
        return False

    @torch.no_grad()
    def largest_weights(self) -> str:
        """Name the parameter group with the largest norm and the largest parameter in it."""
        names = {id(p): name for name, p in self.task.get_trainable_module().named_parameters()}
        norms = [
            (size(torch.nn.utils.get_total_norm(group["params"])), index, group)
            for index, group in enumerate(self.optimizer.param_groups)
        ]
        norm, index, group = max(norms, key=lambda entry: entry[0])
        largest = max(group["params"], key=lambda p: size(p.norm()))
        label = group.get("group_name") or f"number {index}, weight decay {group['weight_decay']:g}"
        return (
            f"largest is parameter group {label} with norm {norm:.3g}, in it {names.get(id(largest), '?')} "
            f"with norm {size(largest.norm()):.3g}"
        )

    def state_dict(self) -> dict:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        if state:
            self.scaler.load_state_dict(state)


def size(norm: torch.Tensor) -> float:
    """Return a norm as a number that can be compared; what is not a number counts as infinite."""
    value = float(norm)
    return math.inf if math.isnan(value) else value
