"""Relevance of tokens or pixels for a class, conserved from the logit down (MambaLRP, arXiv:2406.07592).

Gradient times input, on a forward pass whose values are unchanged but whose derivative is replaced at a few places: the
gain of an activation, the scale of a norm, the step size, B and C of a scan are held, and a product of two signals
gives half of its relevance to each.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

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
from .receptive_field import _check_whole, _frozen

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
        ValueError: a class outside the model's, a model without classifier or one that leaves out tokens, or an unknown
            level or rule.
        NotImplementedError: the model calls a function on its data that no rule covers; the message names it and its
            module.
    """
    model = getattr(model, "_orig_mod", model)
    unknown = set(rules) - set(RULES)
    if unknown:
        raise ValueError(f"rules must be of {', '.join(RULES)}, got {', '.join(sorted(unknown))}")
    if not getattr(model, "num_classes", 0):
        raise ValueError("the model has no classifier: relevance is that of a class")
    _check_whole(model)
    plain = hasattr(model, "embed")
    level = level or ("tokens" if plain else "pixels")
    if level not in ("tokens", "pixels") or (level == "tokens" and not plain):
        raise ValueError(f"level must be 'pixels'{', or tokens' if plain else ''}, got {level!r}")
    streams = cast(Any, model)  # a plain one
    with _frozen(model), _no_checkpointing(model):
        if level == "pixels":
            entrance = x.detach().requires_grad_()
            with _Rules(rules, model):
                logits = model(entrance)
        else:
            with torch.no_grad():
                stream, grid = streams.embed(x)
            entrance = stream.detach().requires_grad_()
            with _Rules(rules, model):
                y = entrance
                for i in range(len(streams.blocks)):
                    y = streams.run_block(i, y, grid)
                    grid = streams.grid_after(i, grid)
                logits = streams.forward_head(streams.finish(y))
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
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "grad_checkpointing")]
    flags = {module: module.grad_checkpointing for module in modules}
    for module in modules:
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
_ACTIVATIONS = {F.silu, F.gelu, F.hardswish, F.softplus}
_POWERS = {torch.pow, torch.Tensor.pow, torch.Tensor.__pow__}
_NORMS = {F.layer_norm, F.rms_norm}
_GATES = {torch.Tensor.sigmoid, torch.sigmoid, F.hardsigmoid, F.softmax, torch.softmax, torch.Tensor.softmax}
_SAMPLERS = {"deformable_sampling", "deform_conv2d"}  # where they sample, and with which weight, is held
_PRODUCTS = {torch.Tensor.mul, torch.mul, torch.Tensor.mul_, torch.Tensor.__mul__, torch.Tensor.__rmul__}


def _named(names: str) -> set[Callable]:
    """Functions of torch, of its tensors and of `torch.nn.functional` by their names."""
    return {getattr(owner, n) for n in names.split() for owner in (torch, torch.Tensor, F) if hasattr(owner, n)}


# linear in all of their data together: moved, added, averaged, cast
_MOVES = _named(
    "view reshape flatten unflatten ravel permute transpose swapaxes movedim t unsqueeze squeeze expand expand_as "
    "broadcast_to repeat repeat_interleave tile chunk split tensor_split unbind narrow select __getitem__ index_select "
    "gather take_along_dim flip roll rot90 unfold fold pad pixel_shuffle pixel_unshuffle contiguous clone detach to "
    "type type_as float double half bfloat16 cat concat stack hstack vstack where masked_fill "
    "add add_ __add__ __radd__ __iadd__ sub sub_ __sub__ __rsub__ __isub__ neg __neg__ positive sum mean cumsum "
    "index_add index_add_ scatter_add avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "interpolate dropout dropout2d alpha_dropout feature_dropout"
)
# proportional to their data: each choice is one of it, or nothing
_CHOICES = _named(
    "relu relu_ leaky_relu max_pool1d max_pool2d max_pool3d adaptive_max_pool2d amax amin max min maximum minimum sort "
    "topk"
)
# linear in one of their arguments while the others are parameters
_BILINEAR = (
    _PRODUCTS
    | _named(
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm bilinear addcmul"
    )
    | _named("matmul __matmul__ __rmatmul__ mm bmm baddbmm addmm einsum tensordot")
    | {causal_conv1d}
)
_QUOTIENTS = _named("div div_ true_divide __truediv__ __itruediv__ divide")  # linear in the first


def is_linear(func: Callable, args: tuple, data: list[Tensor]) -> bool:
    """Whether a call is linear in all of its data together, as far as is known."""
    if func in _MOVES or getattr(func, "__name__", "") == "__get__":  # an attribute, such as x.mT
        return True
    return len(data) == 1 and (func in _BILINEAR or (func in _QUOTIENTS and args[0] is data[0]))


class _Rules(TorchFunctionMode):
    """The forward pass with the derivatives of the rules.

    Args:
        rules: Those that are applied.
        model: Whose modules errors name.
    """

    def __init__(self, rules: Collection[str], model: nn.Module):
        super().__init__()
        self.rules = set(rules)
        self.model = model
        self.within: list[str] = []

    def __enter__(self):
        def leave(*_) -> None:
            self.within.pop()

        self.handles = []
        for name, module in self.model.named_modules():
            self.handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.within.append(name)))
            self.handles.append(module.register_forward_hook(leave, always_call=True))
        return super().__enter__()

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*error)

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        data = [value for value in _flat((*args, *kwargs.values())) if _is_data(value)]
        if not data or not self.rules:
            return func(*args, **kwargs)
        if func is causal_conv1d and kwargs.get("activation"):
            out = func(*args, **kwargs | {"activation": None})
            return self.__torch_function__(F.silu, types, (out,))
        rule = self._rule(func, args, data)
        if rule is not None:
            return self._ruled(rule, func, args, kwargs) if rule in self.rules else func(*args, **kwargs)
        if func in _CHOICES or is_linear(func, args, data):
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if any(_is_data(value) for value in _flat(out if isinstance(out, (list, tuple)) else (out,))):
            where = self.within[-1] if self.within else ""
            raise NotImplementedError(
                f"relevance has no rule for {getattr(func, '__name__', func)} of the model's data, called in "
                f"{where or type(self.model).__name__}"
            )
        return out  # a size, an index, a comparison: nothing flows through it

    @staticmethod
    def _rule(func: Callable, args: tuple, data: list[Tensor]) -> str | None:
        """The rule that a call falls under, if any."""
        power = func in _POWERS and not isinstance(args[1], Tensor) and args[1] > 0
        if func in _ACTIVATIONS or power:
            return "activation"
        if func in _NORMS:
            return "norm"
        if func in SCANS:
            return "scan"
        sampled = getattr(func, "__name__", "") in _SAMPLERS
        gated = func in _GATES or func is F.scaled_dot_product_attention or sampled
        return "gate" if gated or (func in _PRODUCTS and len(data) == 2) else None

    @staticmethod
    def _ruled(rule: str, func: Callable, args: tuple, kwargs: dict) -> Any:
        """What a call returns, with the derivative that its rule gives."""
        if rule == "activation":
            x = args[0]
            y = func(*args, **kwargs).detach()
            return x * torch.where(x == 0, torch.zeros_like(y), y / torch.where(x == 0, torch.ones_like(x), x)).detach()
        if rule == "norm":
            return _norm(func, *args, **kwargs)
        if func in _GATES:
            return func(*args, **kwargs).detach()
        if func in _PRODUCTS:
            a, b = args[0], args[1]
            return a * (b.detach() / 2) + (a.detach() / 2) * b
        kept = 2 if func is F.scaled_dot_product_attention else 0  # the values; or what is scanned or sampled
        held = [v.detach() if isinstance(v, Tensor) and i != kept else v for i, v in enumerate(args)]
        return func(*held, **{name: v.detach() if isinstance(v, Tensor) else v for name, v in kwargs.items()})


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


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
