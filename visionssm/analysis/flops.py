"""Parameters and multiply-adds of a model, counted without computing anything."""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """Size and cost of one forward pass."""

    parameters: int
    multiply_adds: int


def count(model: nn.Module, input_size: tuple[int, int, int], batch: int = 1) -> Cost:
    """Count parameters, and multiply-adds of convolutions, matrix products and scans.

    A multiply-add is one operation; PyTorch's counter counts two. Norms, activations and pooling are left out. A scan
    over T steps, k routes, d channels and N states counts 9 T k d N + T k d, and T k d R if it expands a step size of
    rank R (the first as in the code of VMamba, arXiv:2401.10166).

    Args:
        model: A model; one on the meta device costs neither memory nor time.
        input_size: Channels, height and width of the image.
        batch: Images.
    """
    parameter = next(model.parameters())
    x = torch.empty(batch, *input_size, device=parameter.device, dtype=parameter.dtype)
    training = model.training
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model.eval()(x)
    finally:
        model.train(training)
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
