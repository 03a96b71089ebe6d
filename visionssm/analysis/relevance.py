"""Relevance of tokens or pixels for a class, conserved from the logit down (MambaLRP, arXiv:2406.07592).

Gradient times input, on a forward pass whose values are unchanged but whose derivative is replaced at a few places: the
gain of an activation, the scale of a norm, the step size, B and C of a scan are held, and a product of two signals
gives half of its relevance to each.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..ops import (
    causal_conv1d,
    causal_ssd,
    noncausal_ssd,
    quasi_separable_ssd,
    read_state,
    selective_scan,
    tree_scan,
    wavefront_scan,
    weighted_state,
)
from .receptive_field import _frozen

RULES = ("activation", "norm", "scan", "gate")


@dataclass(frozen=True)
class Relevance:
    """Relevance for one class of each image.

    Attributes:
        values: (b, L) for tokens, (b, h, w) for pixels.
        logits: (b, classes).
        target: (b,), the classes.
        rest: (b,): logit less the sum of the values, which biases and other added parameters hold.
    """

    values: Tensor
    logits: Tensor
    target: Tensor
    rest: Tensor


def relevance(
    model: nn.Module,
    x: Tensor,
    target: int | Tensor | None = None,
    *,
    level: str | None = None,
    rules: Collection[str] = RULES,
) -> Relevance:
    """Relevance of every token or pixel for a class.

    Args:
        model: A classifier of this package; a compiled one is unwrapped. Evaluation mode for the time of the call.
        x: Images (b, c, h, w).
        target: A class, or one for each image (b,); the predicted classes if None.
        level: "tokens" (plain models: the stream after the position embedding, extra tokens included) or "pixels"; None
            takes tokens for plain models and pixels for others.
        rules: Those of "activation", "norm", "scan", "gate" that are applied; none gives gradient times input.

    Raises:
        ValueError: a class outside the model's, a model without classifier, or an unknown level or rule.
        NotImplementedError: the model calls a function on its data that no rule covers.
    """
    model = getattr(model, "_orig_mod", model)
    unknown = set(rules) - set(RULES)
    if unknown:
        raise ValueError(f"rules must be of {', '.join(RULES)}, got {', '.join(sorted(unknown))}")
    if not getattr(model, "num_classes", 0):
        raise ValueError("the model has no classifier: relevance is that of a class")
    plain = hasattr(model, "embed")
    level = level or ("tokens" if plain else "pixels")
    if level not in ("tokens", "pixels") or (level == "tokens" and not plain):
        raise ValueError(f"level must be 'pixels'{', or tokens' if plain else ''}, got {level!r}")
    with _frozen(model), _no_checkpointing(model):
        if level == "pixels":
            entrance = x.detach().requires_grad_()
            with _Rules(rules):
                logits = model(entrance)
        else:
            with torch.no_grad():
                stream, grid = model.embed(x)
            entrance = stream.detach().requires_grad_()
            with _Rules(rules):
                y = entrance
                for i in range(len(model.blocks)):
                    y = model.run_block(i, y, grid)
                logits = model.forward_head(model.finish(y))
        target = _targets(target, logits)
        chosen = logits.gather(1, target[:, None]).squeeze(1)
        (gradient,) = torch.autograd.grad(chosen.sum(), entrance)
    product = entrance.detach().float() * gradient.float() if entrance.dtype != torch.float64 else entrance * gradient
    values = product.detach().sum(2 if level == "tokens" else 1)
    return Relevance(values, logits.detach(), target, chosen.detach() - values.flatten(1).sum(1))


def _targets(target: int | Tensor | None, logits: Tensor) -> Tensor:
    if target is None:
        return logits.argmax(1)
    target = torch.as_tensor(target, device=logits.device).expand(logits.shape[0])
    if target.min() < 0 or target.max() >= logits.shape[1]:
        raise ValueError(f"target must be from 0 to {logits.shape[1] - 1}, got {target.tolist()}")
    return target


@contextmanager
def _no_checkpointing(model: nn.Module) -> Iterator[None]:
    flags = {module: module.grad_checkpointing for module in model.modules() if hasattr(module, "grad_checkpointing")}
    for module in flags:
        module.grad_checkpointing = False
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.grad_checkpointing = flag


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)


# linear in their first argument, once the others are held
SCANS = {
    selective_scan,
    tree_scan,
    wavefront_scan,
    causal_ssd,
    noncausal_ssd,
    quasi_separable_ssd,
    weighted_state,
    read_state,
}
_ACTIVATIONS = {F.silu, F.gelu, torch.nn.functional.hardswish}
_POWERS = {torch.pow, torch.Tensor.pow, torch.Tensor.__pow__}
_GATES = {torch.Tensor.sigmoid, torch.sigmoid, F.hardsigmoid, F.softmax, torch.softmax, torch.Tensor.softmax}
_PRODUCTS = {torch.Tensor.mul, torch.mul, torch.Tensor.mul_, torch.Tensor.__mul__, torch.Tensor.__rmul__}
# what no rule covers and is not linear in the data
_REFUSED = {
    getattr(owner, name)
    for owner in (torch, torch.Tensor)
    for name in ("exp", "log", "tanh", "pow", "__pow__", "sqrt", "rsqrt", "square", "erf", "sin", "cos", "softplus")
    if hasattr(owner, name)
}
_BILINEAR = {torch.matmul, torch.Tensor.matmul, torch.bmm, torch.Tensor.bmm, torch.einsum, torch.Tensor.__matmul__}


class _Rules(TorchFunctionMode):
    """The forward pass with the derivatives of the rules."""

    def __init__(self, rules: Collection[str]):
        super().__init__()
        self.rules = set(rules)

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        data = [value for value in (*args, *kwargs.values()) if _is_data(value)]
        if not data or not self.rules:
            return func(*args, **kwargs)
        if func is causal_conv1d and kwargs.get("activation"):
            out = func(*args, **kwargs | {"activation": None})
            return self.__torch_function__(F.silu, types, (out,))
        power = func in _POWERS and not isinstance(args[1], Tensor) and args[1] > 0
        if "activation" in self.rules and (func in _ACTIVATIONS or power):
            x = args[0]
            y = func(*args, **kwargs).detach()
            return x * torch.where(x == 0, torch.zeros_like(y), y / torch.where(x == 0, torch.ones_like(x), x)).detach()
        if "norm" in self.rules and func in (F.layer_norm, F.rms_norm):
            return _norm(func, *args, **kwargs)
        if "scan" in self.rules and func in SCANS:
            held = [value.detach() if isinstance(value, Tensor) else value for value in args[1:]]
            kwargs = {name: v.detach() if isinstance(v, Tensor) else v for name, v in kwargs.items()}
            return func(args[0], *held, **kwargs)
        if "gate" in self.rules and func in _GATES:
            return func(*args, **kwargs).detach()
        if "gate" in self.rules and func is F.scaled_dot_product_attention:
            held = [v.detach() if isinstance(v, Tensor) and i != 2 else v for i, v in enumerate(args)]
            return func(*held, **{name: v.detach() if isinstance(v, Tensor) else v for name, v in kwargs.items()})
        if "gate" in self.rules and getattr(func, "__name__", "") in ("deformable_sampling", "deform_conv2d"):
            # where it samples, and with which weight, is held
            held = [v.detach() if isinstance(v, Tensor) else v for v in args[1:]]
            return func(args[0], *held, **kwargs)
        if func in _PRODUCTS and len(data) == 2:
            if "gate" not in self.rules:
                return func(*args, **kwargs)
            a, b = args[0], args[1]
            return a * (b.detach() / 2) + (a.detach() / 2) * b
        if func in _REFUSED or (func in _BILINEAR and len(data) > 1):
            raise NotImplementedError(
                f"relevance has no rule for {getattr(func, '__name__', func)} of the model's data"
            )
        return func(*args, **kwargs)


def _norm(func: Callable, x: Tensor, shape, weight=None, bias=None, eps: float | None = None) -> Tensor:
    """The norm with its scale held; the mean of a layer norm stays linear."""
    dims = tuple(range(-len(shape), 0))
    eps = eps if eps is not None else (torch.finfo(x.dtype).eps if func is F.rms_norm else 1e-5)
    centred = x - x.mean(dims, keepdim=True) if func is F.layer_norm else x
    scale = (centred.detach() ** 2).mean(dims, keepdim=True).add(eps).rsqrt()
    y = centred * scale
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias
