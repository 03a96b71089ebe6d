"""One optimizer update: backward, gradient check, clipping, step."""

import math
from typing import cast

import torch
from timm.task import TrainingTask
from timm.utils import dispatch_clip_grad
from torch.distributed.tensor import DTensor


class Updater:
    """Accumulates gradients and updates the weights, unless the gradient is not finite.

    The check is on the norm of the whole gradient: it sees a bad loss as well as an overflow in the backward pass, and
    after DDP's reduction every process sees the same value, so all skip together. It is the one value of an update that
    is read from the device. fp16 AMP scales the loss and counts as skipped what the scaler would skip too.

    Args:
        task: timm task on the device.
        optimizer: Optimizer over its parameters.
        device: Device.
        clip: Bound of gradient clipping, or None.
        clip_mode: "norm", "value" or "agc".
        scale_loss: Scale the loss, as float16 needs.
    """

    state_dict_key = "amp_scaler"  # timm's name of the loss scale in a checkpoint

    def __init__(
        self,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        clip: float | None = None,
        clip_mode: str = "norm",
        scale_loss: bool = False,
    ):
        self.task = task
        self.optimizer = optimizer
        self.clip, self.clip_mode = clip, clip_mode
        self.scaler = torch.amp.GradScaler(device.type, enabled=scale_loss)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss."""
        self.scaler.scale(loss).backward()

    def step(self) -> bool:
        """Update the weights and clear the gradients.

        Returns:
            False when the update was skipped because its gradient is not finite.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite = bool(torch.isfinite(whole(norm)))
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
        return finite

    @torch.no_grad()
    def largest_weights(self) -> str:
        """Name the parameter group with the largest norm and the largest parameter in it."""
        module = cast(torch.nn.Module, self.task.get_trainable_module())
        names = {id(p): name for name, p in module.named_parameters()}
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


def whole(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor in one piece; all processes have to call this for one that is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def size(norm: torch.Tensor) -> float:
    """Return a norm as a number that can be compared; what is not a number counts as infinite."""
    value = float(whole(norm))
    return math.inf if math.isnan(value) else value
