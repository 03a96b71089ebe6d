"""What the layers of a model put out: how large it grows, and where the first number that is none appears."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .receptive_field import _frozen


@dataclass(frozen=True)
class LayerStatistics:
    """One call of a layer; statistics over its finite outputs.

    Attributes:
        name: Of the module; "(model)" for the whole.
        type: Its class.
        mean: Mean.
        std: Deviation.
        largest: Largest absolute value.
        zeros: Share that is exactly 0.
        nonfinite: NaN and infinite values.
    """

    name: str
    type: str
    mean: float
    std: float
    largest: float
    zeros: float
    nonfinite: int


@torch.no_grad()
def activation_statistics(model: nn.Module, images: Tensor) -> list[LayerStatistics]:
    """Statistics of what each module without children puts out, in the order of the calls, then of the whole model's.

    Args:
        model: A model; evaluation mode for the time of the call. A compiled one is unwrapped.
        images: (b, c, h, w).
    """
    model = getattr(model, "_orig_mod", model)
    found: list[LayerStatistics] = []

    def keep(name: str):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            for tensor in output if isinstance(output, (tuple, list)) else [output]:
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    found.append(_statistics(name, module, tensor))

        return hook

    handles = [
        module.register_forward_hook(keep(name or "(model)"))
        for name, module in model.named_modules()
        if not name or not any(True for _ in module.children())
        if not isinstance(module, (nn.Identity, nn.Dropout))
    ]
    try:
        with _frozen(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _statistics(name: str, module: nn.Module, tensor: Tensor) -> LayerStatistics:
    finite = tensor[tensor.isfinite()].double()
    nonfinite = tensor.numel() - finite.numel()
    if not finite.numel():
        nan = float("nan")
        return LayerStatistics(name, type(module).__name__, nan, nan, nan, nan, nonfinite)
    return LayerStatistics(
        name,
        type(module).__name__,
        finite.mean().item(),
        finite.std(correction=0).item(),
        finite.abs().max().item(),
        (finite == 0).double().mean().item(),
        nonfinite,
    )


def first_nonfinite(statistics: list[LayerStatistics]) -> LayerStatistics | None:
    """The first layer whose output is not finite everywhere, or None."""
    return next((layer for layer in statistics if layer.nonfinite), None)
