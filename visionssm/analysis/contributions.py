"""What each input token contributes to each output token of a layer (the idea of LaTIM, arXiv:2502.15612, made exact).

At the values of a real input the gains of activations, the scales of norms, the step sizes, B and C of scans, and gates
are held. What remains is an affine map of the layer's input, so the output is a sum over input tokens plus a rest.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from functools import reduce as reduce_left
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..models._plain import PlainModel
from ..ops import causal_conv1d, selective_scan
from .receptive_field import _check_whole, _frozen
from .relevance import _GATES, _PRODUCTS, is_linear

REDUCTIONS = ("alti", "norm", "signed")
_LARGEST = 4096
_EMPTY = {torch.Tensor.new_zeros, torch.zeros_like, torch.Tensor.new_ones, torch.ones_like}  # shaped like their data


@dataclass(frozen=True)
class Contributions:
    """Contributions of the input tokens of a layer.

    Attributes:
        matrix: (b, rows, L), as `reduce` says; None without a reduction.
        tensor: (b, rows, L, C), what output token i has from input token j; None with a reduction.
        rest: (b, rows, C), what no token contributes.
    """

    matrix: Tensor | None
    tensor: Tensor | None
    rest: Tensor


@torch.no_grad()
def contributions(
    layer: Callable[..., Tensor],
    x: Tensor,
    *args: Any,
    rows: Sequence[int] | None = None,
    reduce: str | None = "alti",
    chunk: int = 64,
) -> Contributions:
    """Contributions of every input token of a layer to its output tokens.

    Args:
        layer: A mixer, block, or stack of blocks in evaluation mode that keeps the number of tokens.
        x: Its input: tokens (b, L, C), or a map (b, h, w, C) whose positions are the tokens.
        *args: Further arguments of the layer.
        rows: Output tokens to keep; all if None.
        reduce: "alti", shares of each row that sum to 1 (Ferrando et al., arXiv:2203.04212); "norm", Euclidean norms;
            "signed", products with the direction of the sum; None keeps the contributions themselves.
        chunk: Input tokens computed at once.

    Raises:
        ValueError: an unknown reduction, too many tokens to keep, or a layer that changes their number.
        NotImplementedError: the layer calls a function on its data whose part for a token is not defined.
    """
    if reduce is not None and reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)} or None, got {reduce!r}")
    batch, dim = x.shape[0], x.shape[-1]
    length = x[0, ..., 0].numel()
    if length > _LARGEST and rows is None:
        size = batch * length**2 * dim * x.element_size() / 2**30
        raise ValueError(f"the contributions of {length} tokens take {size:.0f} GiB; say which rows to keep")
    tape = _Tape()
    with tape.recording():
        output = layer(_entrance(x), *args)
    if output.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"the layer changes the tokens from {tuple(x.shape[:-1])} to {tuple(output.shape[:-1])}")

    def replay(inputs: Tensor, copies: int) -> Tensor:
        with tape.replaying(copies):
            out = layer(_entrance(inputs), *args)
        return out.reshape(batch, copies, length, -1)

    rest = replay(torch.zeros_like(x), 1)[:, 0]
    kept = torch.arange(length, device=x.device) if rows is None else torch.as_tensor(rows, device=x.device)
    parts = []
    for start in range(0, length, chunk):
        tokens = torch.arange(start, min(start + chunk, length), device=x.device)
        inputs = x.new_zeros(batch, len(tokens), length, dim)
        inputs[:, torch.arange(len(tokens)), tokens] = x.reshape(batch, length, dim)[:, tokens]
        out = replay(inputs.reshape(batch * len(tokens), *x.shape[1:]), len(tokens))
        parts.append((out - rest[:, None])[:, :, kept].transpose(1, 2))
    tensor = torch.cat(parts, dim=2)
    rest = rest[:, kept]
    if reduce is None:
        return Contributions(None, tensor, rest)
    return Contributions(_reduce(tensor, reduce, kept), None, rest)


def _reduce(tensor: Tensor, reduce: str, rows: Tensor) -> Tensor:
    total = tensor.sum(2, keepdim=True)
    if reduce == "norm":
        return tensor.norm(dim=-1)
    if reduce == "signed":
        return (tensor * F.normalize(total, dim=-1)).sum(-1)
    share = (total.abs().sum(-1) - (total - tensor).abs().sum(-1)).clamp(min=0)
    whole = share.sum(-1, keepdim=True)
    identity = F.one_hot(rows, tensor.shape[2]).to(share.dtype)
    return torch.where(whole > 0, share / whole.clamp(min=torch.finfo(share.dtype).tiny), identity)


@torch.no_grad()
def rollout(model: nn.Module, images: Tensor, start: int = 0, reduce: str = "alti") -> Tensor:
    """Contributions through the blocks of a plain model, each with its skip connection: the product of their matrices.

    Args:
        model: A plain model of this package.
        images: (b, c, h, w).
        start: The first block.
        reduce: As for `contributions`.

    Returns:
        (b, L, L): what token i after the last block has from token j before block `start`.

    Raises:
        ValueError: the model is not plain, leaves out or merges tokens, or has no such block.
    """
    if not hasattr(model, "embed"):
        raise ValueError("a rollout needs a plain model; of another one's stage ask for `contributions` of its blocks")
    _check_whole(model)
    plain = cast(PlainModel, model)
    if not 0 <= start < len(plain.blocks):
        raise ValueError(f"start must be from 0 to {len(plain.blocks) - 1}, got {start}")
    matrices: list[Tensor] = []
    with _frozen(model):
        x, grid = plain.embed(images)
        for i in range(len(plain.blocks)):
            run: Callable[..., Any] = partial(plain.run_block, i, grid=grid)
            if i >= start:
                matrices.append(cast(Tensor, contributions(run, x, reduce=reduce).matrix))
            x = run(x)
    return reduce_left(lambda product, matrix: matrix @ product, matrices)


class _Tape:
    """What the real input's pass held, in the order of the calls, for passes of other inputs."""

    def __init__(self) -> None:
        self.held: list[Tensor | dict[str, Any]] = []

    def recording(self) -> "_Mode":
        return _Mode(self.held, None)

    def replaying(self, copies: int) -> "_Mode":
        return _Mode(list(self.held), copies)


class _Mode(TorchFunctionMode):
    def __init__(self, held: list, copies: int | None):
        super().__init__()
        self.held, self.copies, self.next = held, copies, 0

    def hold(self, make: Callable[[], Any]) -> Any:
        """The next held value: made and written down, or read and repeated for the copies of each image."""
        if self.copies is None:
            self.held.append(make())
            return self.held[-1]
        if self.next >= len(self.held):
            raise RuntimeError("the layer made more calls in a replay than with its real input")
        value = self.held[self.next]
        self.next += 1
        repeat = partial(_repeat, copies=self.copies)
        return {k: repeat(v) for k, v in value.items()} if isinstance(value, dict) else repeat(value)

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        values = [*args, *kwargs.values()]
        flat = [v for value in values for v in (value if isinstance(value, list | tuple) else [value])]
        data = [v for v in flat if _scans(v) is not None]
        if not data:
            return func(*args, **kwargs)
        x = args[0] if args else data[0]
        if func is causal_conv1d and kwargs.get("activation"):
            out = self.__torch_function__(func, types, args, kwargs | {"activation": None})
            return self.__torch_function__(F.silu, types, (out,))
        if func in (F.silu, F.gelu, F.relu, torch.relu, torch.Tensor.relu):
            at_zero = 0.0 if "relu" in func.__name__ else 0.5

            def gain() -> Tensor:
                ones = torch.ones_like(x)
                return torch.where(x == 0, at_zero * ones, func(*args, **kwargs) / torch.where(x == 0, ones, x))

            return _mark(x * self.hold(gain), data)
        if func in (F.layer_norm, F.rms_norm):
            return _mark(self._norm(func, *args, **kwargs), data)
        if func in _GATES:
            return _mark(self.hold(lambda: func(*args, **kwargs)), data)
        if func is selective_scan:
            return _mark(self._scan(args, kwargs), data, 1)
        if func in _PRODUCTS and len(args) > 1 and all(_scans(v) is not None for v in args[:2]):
            a, b = sorted(args[:2], key=lambda value: _scans(value) or 0, reverse=True)
            return _mark(a * self.hold(lambda: b), data)
        out = func(*args, **kwargs)
        outputs = out if isinstance(out, (list, tuple)) else [out]
        told = any(isinstance(y, Tensor) and y.is_floating_point() for y in outputs)
        if told and func not in _EMPTY and not is_linear(func, args, data):
            raise NotImplementedError(f"no contributions are defined through {getattr(func, '__name__', func)}")
        return _mark(out, data)

    def _norm(self, func: Callable, x: Tensor, shape, weight=None, bias=None, eps: float | None = None) -> Tensor:
        dims = tuple(range(-len(shape), 0))
        eps = eps if eps is not None else (torch.finfo(x.dtype).eps if func is F.rms_norm else 1e-5)
        centred = x - x.mean(dims, keepdim=True) if func is F.layer_norm else x
        y = centred * self.hold(lambda: (centred**2).mean(dims, keepdim=True).add(eps).rsqrt())
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def _scan(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
        arguments = dict(zip(names, args, strict=False)) | kwargs
        per_image = {name: arguments[name] for name in ("delta", "B", "C") if arguments.get(name) is not None}
        held = self.hold(lambda: per_image)
        return cast(Tensor, selective_scan(**{**arguments, **held}))


def _repeat(value: Any, copies: int) -> Any:
    return value.repeat_interleave(copies, 0) if isinstance(value, Tensor) and copies != 1 else value


def _scans(value: Any) -> int | None:
    """Scans behind a tensor; None if it does not come from the layer's input."""
    return getattr(value, "_scans_behind", None)


def _entrance(x: Tensor) -> Tensor:
    """The layer's input, as a tensor of its own that is known as such."""
    x = x.view_as(x)
    x._scans_behind = 0  # type: ignore[attr-defined]
    return x


def _mark(out: Any, data: Collection[Tensor], more: int = 0) -> Any:
    behind = max(v._scans_behind for v in data) + more  # type: ignore[attr-defined]
    for tensor in out if isinstance(out, list | tuple) else [out]:
        if isinstance(tensor, Tensor):
            tensor._scans_behind = behind  # type: ignore[attr-defined]
    return out
