"""Multiply-adds as papers counted them, where their rule is not that of `visionssm.analysis.flops.count`.

A published figure is comparable with another one only if both were counted alike, and for scans they rarely were. A
rule says how; the rules of the families stand beside their figures in model_cards, with where they were found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..layers import SelectiveSSM
from ..ops import causal_conv1d, noncausal_ssd
from ..ops.selective_scan.flops import scan_sizes
from .receptive_field import _frozen

_NORMS = (F.layer_norm, F.rms_norm, F.batch_norm)
_PRODUCTS = {
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.einsum,
    torch.Tensor.matmul,
    torch.Tensor.bmm,
    torch.Tensor.__matmul__,
}


@dataclass(frozen=True)
class CountingRule:
    """What a count takes in.

    Attributes:
        scan_states: Multiply-adds for each step, route, channel and state of a scan; 0 where scans are passed over.
        scan_channels: For each step, route and channel, besides.
        expand_step: The low-rank step size's expansion counts.
        one_route: What projects to step size, B and C counts for one route of several.
        products: Matrix products count that no module makes but a forward itself: those of attention.
        shared_once: A product of what all heads share with each of them counts for one head.
        norm_elements: For each element that a norm returns.
        causal_conv: The causal convolution before a scan counts, for one route.
    """

    scan_states: float = 9.0
    scan_channels: float = 1.0
    expand_step: bool = True
    one_route: bool = False
    products: bool = True
    shared_once: bool = False
    norm_elements: float = 0.0
    causal_conv: bool = False


def count_by(rule: CountingRule, model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-adds of one image by a rule.

    Args:
        rule: The rule; the default one gives what `visionssm.analysis.flops.count` gives.
        model: A model, best on the meta device.
        input_size: Channels, height and width of the image.
    """
    parameter = next(model.parameters())
    x = torch.empty(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    scans = torch.ops.visionssm.selective_scan
    counter = FlopCounterMode(display=False, custom_mapping={scans: lambda *args, **_: _scan(rule, *args)})
    with _frozen(model), torch.no_grad(), counter, _Corrections(rule, counter) as corrections:
        model(x)
    total = counter.get_total_flops() / 2 + corrections.total
    if rule.one_route:
        by_module, root = counter.get_flop_counts(), type(model).__name__
        for name, module in model.named_modules():
            if isinstance(module, SelectiveSSM) and module.routes > 1:
                counted = by_module.get(f"{root}.{name}", {})
                projected = sum(flops for operator, flops in counted.items() if operator is not scans) / 2
                total -= projected * (1 - 1 / module.routes)
    return round(total)


def _scan(rule: CountingRule, *shapes, out_shape=None) -> int:
    b, t, k, d, n, r = scan_sizes(*shapes)
    expanding = r * (1 if rule.one_route else k) if rule.expand_step else 0
    return round(2 * b * t * d * (k * (rule.scan_states * n + rule.scan_channels) + expanding))


class _Corrections(TorchFunctionMode):
    """What a rule adds to or takes from the count of the operators."""

    def __init__(self, rule: CountingRule, counter: FlopCounterMode) -> None:
        super().__init__()
        self.rule, self.counter, self.total = rule, counter, 0.0

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None) -> Any:
        before = self.counter.get_total_flops()
        out = func(*args, **(kwargs or {}))
        spent = (self.counter.get_total_flops() - before) / 2
        if func in _PRODUCTS and not self.rule.products and not _has_parameter(args):
            self.total -= spent
        elif func is noncausal_ssd and self.rule.shared_once:
            heads, groups = args[0].shape[2], 1 if args[3].ndim == 3 else args[3].shape[2]
            self.total -= spent * (1 - groups / heads)
        elif func in _NORMS:
            self.total += self.rule.norm_elements * out.numel()
        elif func is causal_conv1d and self.rule.causal_conv:
            taps, (b, length), d = args[1].shape[-1], args[0].shape[:2], args[0].shape[-1]
            self.total += b * (length + taps - 1) * d * taps
        return out


def _has_parameter(args: tuple) -> bool:
    flat = [v for value in args for v in (value if isinstance(value, (list, tuple)) else [value])]
    return any(isinstance(v, nn.Parameter) or isinstance(getattr(v, "_base", None), nn.Parameter) for v in flat)
