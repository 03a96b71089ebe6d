"""Parameters, multiply-adds and activations of a model, counted without computing anything."""

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker


class Cost(NamedTuple):
    """Size and cost of one forward pass."""

    parameters: int
    multiply_adds: int
    activations: int


class ModuleCost(NamedTuple):
    """What one module holds and costs, its children included."""

    name: str  # "" for the whole model
    type: str
    parameters: int
    multiply_adds: int
    activations: int


def count(model: nn.Module, input_size: tuple[int, int, int], batch: int = 1) -> Cost:
    """Count parameters; multiply-adds of convolutions, matrix products and scans; the numbers that these put out.

    A multiply-add is one operation; PyTorch's counter counts two. Norms, activation functions and pooling are left out.
    A scan over T steps, k routes, d channels and N states counts 9 T k d N + T k d, and T k d R if it expands a step
    size of rank R (the first as in the code of VMamba, arXiv:2401.10166); a bilinear sample of a deformable convolution
    counts 4 for each channel, and its weight 1. Activations are the elements that convolutions, matrix products and
    scans return (RegNet's measure, arXiv:2003.13678, section 3).

    Args:
        model: A model; one on the meta device costs neither memory nor time.
        input_size: Channels, height and width of the image.
        batch: Images.
    """
    whole = count_modules(model, input_size, batch, depth=0)[0]
    return Cost(whole.parameters, whole.multiply_adds, whole.activations)


def count_modules(
    model: nn.Module, input_size: tuple[int, int, int], batch: int = 1, depth: int | None = None
) -> list[ModuleCost]:
    """`count` for each module, in the order of the model; a module that is never called has no cost.

    Args:
        model: As for `count`.
        input_size: As for `count`.
        batch: Images.
        depth: Levels of nesting below the model, 0 for the model alone; all if None.
    """
    parameter = next(model.parameters())
    x = torch.empty(batch, *input_size, device=parameter.device, dtype=parameter.dtype)
    training = model.training
    counter, activations = FlopCounterMode(display=False), _Activations()
    try:
        with torch.no_grad(), activations, counter:
            model.eval()(x)
    finally:
        model.train(training)
    flops, root = counter.get_flop_counts(), type(model).__name__
    rows = []
    for name, module in model.named_modules():
        if depth is not None and len(name.split(".") if name else []) > depth:
            continue
        key = f"{root}.{name}" if name else "Global"
        rows.append(
            ModuleCost(
                name,
                type(module).__name__,
                sum(p.numel() for p in module.parameters()),
                sum(flops.get(key, {}).values()) // 2,
                activations.by_module.get(key, 0),
            )
        )
    return rows


class _Activations(TorchDispatchMode):
    """Elements that counted operators return, by module."""

    def __init__(self) -> None:
        super().__init__()
        self.by_module: dict[str, int] = defaultdict(int)
        self.tracker = ModuleTracker()

    def __enter__(self):
        self.tracker.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        self.tracker.__exit__(*error)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            first = out[0] if isinstance(out, (tuple, list)) else out
            for module in self.tracker.parents:
                self.by_module[module] += first.numel()
        return out
