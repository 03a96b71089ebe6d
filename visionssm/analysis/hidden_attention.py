"""A scan as a matrix: hidden attention (arXiv:2403.01590), and with convolution and gate (arXiv:2405.16504)."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import MambaMixer
from ..models._plain import PlainModel
from ..ops import causal_conv1d, selective_scan
from .receptive_field import _check_whole, _frozen
from .scan_calls import ScanCall, ScanCalls

METHODS = ("raw", "rollout", "attribution", "unified")


@torch.no_grad()
def hidden_attention(
    layer: nn.Module,
    x: Tensor,
    *args: Any,
    with_conv: bool = False,
    with_gate: bool = False,
    with_skip: bool = False,
) -> Tensor:
    """The matrices by which the scan of a layer mixes its tokens, in the tokens' own order.

    Args:
        layer: A layer that scans once. Its matrices M give, with the input u of the scan, its output: M u + D u.
        x: The layer's input.
        *args: Further arguments of the layer.
        with_conv: Multiply by the gain of the activation and the causal convolution, so that the matrices act on the
            input of the convolution. For Mamba's mixers.
        with_gate: Multiply rows by the gate. For Mamba's mixers.
        with_skip: Add D to the diagonal of the scan.

    Returns:
        (b, k, d, L, L), row = output token; k routes. A step that reads a zero token has no row and no column.

    Raises:
        ValueError: the layer scans not once, or has no causal convolution or gate to put in.
    """
    layer = getattr(layer, "_orig_mod", layer)
    scan, conv = _one_scan(layer, x, args, with_conv or with_gate)
    parts = _Steps(scan.arguments)
    matrix = parts.matrices(with_skip)
    if with_conv and conv is not None:
        matrix = (matrix * torch.sigmoid(_steps_first(_before_silu(conv)))[:, :, :, None]) @ _taps(
            conv.arguments, parts.length
        )
    matrix = parts.by_token(matrix)
    if with_gate:
        gate = F.silu(cast(MambaMixer, layer).in_proj(x).chunk(2, dim=-1)[1])
        matrix = matrix * gate.transpose(1, 2)[:, None, :, :, None]
    return matrix


@torch.no_grad()
def token_attention(
    layer: nn.Module, x: Tensor, *args: Any, token: int, route: int | None = None, unified: bool = False
) -> Tensor:
    """One token's row of `hidden_attention`, without the matrices, which large maps have no room for.

    Args:
        layer: A layer that scans once.
        x: The layer's input.
        *args: Further arguments of the layer.
        token: The output token, in the tokens' own order.
        route: A route; all of them, added, if None.
        unified: With convolution and gate (arXiv:2405.16504), for Mamba's mixers.

    Returns:
        (b, d, L): what each input token gives each channel of the output token.

    Raises:
        ValueError: as for `hidden_attention`, or no such token or route.
    """
    scan, conv = _one_scan(layer, x, args, with_conv=unified)
    steps = _Steps(scan.arguments)
    routes = steps.b.shape[1]
    if route is not None and not 0 <= route < routes:
        raise ValueError(f"route must be from 0 to {routes - 1}, got {route}")
    if not 0 <= token < steps.num_tokens:
        raise ValueError(f"token must be from 0 to {steps.num_tokens - 1}, got {token}")
    total = scan.arguments["u"].new_zeros(x.shape[0], steps.a.shape[1], steps.num_tokens, dtype=torch.float32)
    for k in range(routes) if route is None else [route]:
        order = torch.arange(steps.length) if steps.order is None else steps.order[k].long()
        for step in (order == token).nonzero().flatten().tolist():
            row = steps.row(step, k, own_step=True, diagonal=True)
            if conv is not None:
                gain = torch.sigmoid(_steps_first(_before_silu(conv)))[:, k, :, : step + 1]
                weight = conv.arguments["weight"]
                row = _convolved_back(row * gain, weight[k] if weight.ndim == 3 else weight)
            visited = order[: step + 1]
            total.index_add_(2, visited.clamp(min=0), row * (visited >= 0))
    if unified:
        gate = F.silu(cast(MambaMixer, layer).in_proj(x).chunk(2, dim=-1)[1])
        total = total * gate[:, token, :, None]
    return total


def _convolved_back(row: Tensor, weight: Tensor) -> Tensor:
    """A row (b, d, T) over a causal convolution's outputs to one over its inputs; `weight` is (d, taps)."""
    out = torch.zeros_like(row)
    for back in range(min(weight.shape[-1], row.shape[-1])):
        out[..., : row.shape[-1] - back] += row[..., back:] * weight[:, -1 - back, None]
    return out


def _one_scan(layer: nn.Module, x: Tensor, args: tuple, with_conv: bool) -> tuple[ScanCall, ScanCall | None]:
    """The call of the scan that a layer makes, and that of its causal convolution if it is wanted."""
    layer = getattr(layer, "_orig_mod", layer)  # a compiled layer makes no calls
    with ScanCalls() as seen:
        layer(x, *args)
    scans = [call for call in seen.calls if call.function is selective_scan]
    convs = [call for call in seen.calls if call.function is causal_conv1d]
    if len(scans) != 1:
        raise ValueError(f"hidden attention is that of one scan, but {type(layer).__name__} makes {len(scans)}")
    if not with_conv:
        return scans[0], None
    if not (isinstance(layer, MambaMixer) and len(convs) == 1):
        raise ValueError("convolution and gate are those of Mamba's mixers, which convolve causally and gate with SiLU")
    return scans[0], convs[0]


def _steps_first(x: Tensor) -> Tensor:
    """(b, T, [k,] d) to (b, k, d, T)."""
    return (x if x.ndim == 4 else x.unsqueeze(2)).permute(0, 2, 3, 1)


def _taps(arguments: dict[str, Any], length: int) -> Tensor:
    """The causal convolution of each channel as a matrix (1, k, d, T, T) over scan steps."""
    weight = arguments["weight"]
    weight = weight if weight.ndim == 3 else weight.unsqueeze(0)
    out = weight.new_zeros(*weight.shape[:2], length, length)
    for back in range(min(weight.shape[-1], length)):
        out.diagonal(-back, -2, -1).copy_(weight[..., -1 - back, None].expand(*weight.shape[:2], length - back))
    return out.unsqueeze(0)


class _Steps:
    """One scan's quantities by scan step: step sizes and decays (b, k, d, T), B and C (b, k, T, N)."""

    def __init__(self, arguments: dict[str, Any]):
        u, order = arguments["u"], arguments["order"]
        by_token = arguments["index"] == "token"
        delta, b = (self._per_step(arguments[name], order if by_token else None) for name in ("delta", "B"))
        c = None if arguments["C"] is None else self._per_step(arguments["C"], order if by_token else None)
        routes = max(t.shape[1] for t in (delta, b)) if order is None else order.shape[0]
        if arguments["dt_weight"] is not None:
            weight = arguments["dt_weight"]
            weight = weight if weight.ndim == 3 else weight.unsqueeze(0)
            delta = delta @ weight.float().transpose(-1, -2)
        self.order = order
        self.length = delta.shape[2]
        self.num_tokens = arguments["num_tokens"] or (self.length if order is None else int(order.max()) + 1)
        if order is not None and arguments["num_tokens"] is None and arguments["u_index"] == "token":
            self.num_tokens = u.shape[1]
        bias = arguments["delta_bias"]
        if bias is not None:
            delta = delta + (bias if bias.ndim == 2 else bias.unsqueeze(0))[:, None]
        delta = F.softplus(delta) if arguments["delta_softplus"] else delta
        self.delta = delta.expand(-1, routes, -1, -1).transpose(2, 3)
        a = arguments["A"]
        self.a = a if a.ndim == 3 else a.unsqueeze(0)
        self.b = b.expand(-1, routes, -1, -1)
        self.c = torch.ones_like(self.b) if c is None else c.expand(-1, routes, -1, -1)
        d = arguments["D"]
        self.d = d if d is None or d.ndim == 2 else d.unsqueeze(0)

    @staticmethod
    def _per_step(x: Tensor, order: Tensor | None) -> Tensor:
        """(b, S, [k,] c) to (b, k, T, c) in float32; zeros where a step reads a zero token."""
        x = (x if x.ndim == 4 else x.unsqueeze(2)).transpose(1, 2).float()
        if order is None:
            return x
        x = x.expand(-1, order.shape[0], -1, -1)
        index = order.clamp(min=0).long()[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[-1])
        return x.gather(2, index) * (order >= 0)[None, :, :, None]

    def matrices(self, with_skip: bool) -> Tensor:
        """(b, k, d, T, T) over scan steps, row = output step."""
        sums = self.delta.cumsum(-1)
        spans = sums[..., :, None] - sums[..., None, :]
        below = torch.ones(self.length, self.length, dtype=torch.bool, device=sums.device).tril()
        spans = spans.masked_fill(~below, 0.0)
        out = torch.zeros_like(spans)
        for n in range(self.a.shape[-1]):
            decay = torch.exp(self.a[None, :, :, n, None, None] * spans)
            out += decay * (self.c[:, :, None, :, None, n] * self.b[:, :, None, None, :, n])
        out = (out * self.delta[..., None, :]).masked_fill(~below, 0.0)
        if with_skip and self.d is not None:
            out.diagonal(0, -2, -1).add_(self.d[None, :, :, None])
        return out

    def row(self, step: int, route: int, own_step: bool, diagonal: bool = False) -> Tensor:
        """Row of the matrix of one route at a step, (b, d, step), or (b, d, step + 1) with the diagonal.

        Args:
            step: The output step.
            route: The route.
            own_step: Include the decay of the step itself, which the released tools leave out.
            diagonal: Include the step's own entry.
        """
        delta = self.delta[:, route, :, : step + 1]
        count = step + 1 if diagonal else step
        sums = delta.cumsum(-1)
        spans = (sums[..., -1:] if own_step else sums[..., -1:] - delta[..., -1:]) - sums[..., :count]
        weights = self.c[:, route, step, :, None] * self.b[:, route, :count].transpose(1, 2)  # (b, N, count)
        a = self.a[route if self.a.shape[0] > 1 else 0]
        out = torch.zeros_like(delta[..., :count])
        for n in range(a.shape[-1]):
            out += torch.exp(a[:, n, None] * spans) * weights[:, n, None]
        return out * delta[..., :count]

    def by_token(self, matrix: Tensor) -> Tensor:
        """(b, k, d, T, T) over steps to (b, k, d, L, L) over tokens."""
        if self.order is None:
            return matrix
        batch, routes, dim, steps, _ = matrix.shape
        out = matrix.new_zeros(batch, routes, dim, self.num_tokens, self.num_tokens)
        for k in range(routes):
            used = (self.order[k] >= 0).nonzero().squeeze(1)
            token = self.order[k, used].long()
            cells = (token[:, None] * self.num_tokens + token[None, :]).flatten()
            flat = matrix[:, k][:, :, used][..., used].flatten(2)
            out[:, k].flatten(2).index_add_(2, cells, flat)
        return out


def class_token_relevance(
    model: nn.Module,
    image: Tensor,
    method: str = "rollout",
    *,
    start: int = 0,
    target: int | None = None,
    released: bool = False,
) -> Tensor:
    """Relevance of the patches for the class token of a model with Vim's mixer, from its hidden attention.

    Args:
        model: A plain model with one class token and two routes, the sequence and its reverse.
        image: (1, c, h, w).
        method: "raw", "rollout" or "attribution" of arXiv:2403.01590, or "unified" of arXiv:2405.16504.
        start: The first block.
        target: The class of "attribution" and "unified"; the predicted one if None.
        released: Leave out the class token's own decay, as the released tools of the first paper do.

    Returns:
        (rows, columns) of the patches, at least 0.

    Raises:
        ValueError: an unknown method, several images, another kind of model or one that leaves out tokens, or a block
            that does not exist.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if image.shape[0] != 1:
        raise ValueError(f"relevance is shown for one image at a time, got {image.shape[0]}")
    _check_whole(model)
    mixers = [getattr(block, "mixer", None) for block in getattr(model, "blocks", [])]
    fits = mixers and all(isinstance(m, MambaMixer) and m.scan == "bidirectional" for m in mixers)
    if not fits or getattr(model, "num_extra_tokens", 0) != 1:
        raise ValueError("the relevance of hidden attention needs a plain model with Vim's mixers and one class token")
    if not 0 <= start < len(mixers):
        raise ValueError(f"start must be from 0 to {len(mixers) - 1}, got {start}")
    rows, gradients, grid = _rows_and_gradients(cast(PlainModel, model), image, method, target, released)
    length = rows[0].shape[-1]
    middle = (length - 1) // 2
    maps = []
    for row, gradient in zip(rows, gradients, strict=True):
        if method == "raw":
            maps.append(_min_max(row).mean(0))
        elif method == "rollout":
            maps.append(row.mean(0))
        else:
            s = _min_max(gradient.clamp(min=0).amax(-1))
            if method == "attribution":
                maps.append(_min_max(row.clamp(min=0)).mean(0) * s)
            else:
                maps.append(_min_max(row.clamp(min=0).mean(0) * s))
    maps = maps[start:]
    relevance = torch.stack(maps).mean(0) if method == "raw" else _roll_out(maps)[middle]
    patches = torch.cat([relevance[:middle], relevance[middle + 1 :]]).clamp(min=0)
    return patches.view(grid)


def _rows_and_gradients(
    model: PlainModel, image: Tensor, method: str, target: int | None, released: bool
) -> tuple[list[Tensor], list[Tensor], tuple[int, int]]:
    """Of every block: the class token's row (d, L), and the logit's gradient at the stream (L, C) after it."""
    streams: list[Tensor] = []
    gates: list[Tensor] = []

    def keep_stream(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        output.retain_grad()
        streams.append(output)

    def keep_gate(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        gates.append(F.silu(output.detach().chunk(2, dim=-1)[1]))

    with _frozen(model), ScanCalls() as seen:
        handles = [block.register_forward_hook(keep_stream) for block in model.blocks]
        handles += [cast(Any, block).mixer.in_proj.register_forward_hook(keep_gate) for block in model.blocks]
        try:
            logits = model(image.detach().requires_grad_())
            logits[0, int(logits.argmax()) if target is None else target].backward()
        finally:
            for handle in handles:
                handle.remove()
    scans = [call for call in seen.calls if call.function is selective_scan]
    convs = [call for call in seen.calls if call.function is causal_conv1d]
    with torch.no_grad():
        if method == "unified":
            rows = [
                _unified_row(scan.arguments, conv, gate) for scan, conv, gate in zip(scans, convs, gates, strict=True)
            ]
        else:
            rows = [_class_row(scan.arguments, released) for scan in scans]
    return (
        rows,
        [stream.grad[0] for stream in streams if stream.grad is not None],
        cast(Any, model.patch_embed).grid_size(*image.shape[2:]),
    )


def _before_silu(conv: ScanCall) -> Tensor:
    """What the convolution of a Mamba mixer gives to its SiLU."""
    return causal_conv1d(**conv.arguments | {"activation": None})


def _class_row(arguments: dict[str, Any], released: bool) -> Tensor:
    """(d, L): tokens before the class token by the forward route, those after it by the backward one; 0 at itself."""
    steps = _Steps(arguments)
    length = steps.length
    middle = (length - 1) // 2
    before = steps.row(middle, 0, not released)[0]
    after = steps.row(length - 1 - middle, 1, not released)[0].flip(-1)
    return torch.cat([before, torch.zeros_like(before[:, :1]), after], dim=-1)


def _unified_row(arguments: dict[str, Any], conv: ScanCall, gate: Tensor) -> Tensor:
    """(d, L): the class token's row of both routes' unified matrices, added."""
    steps = _Steps(arguments)
    matrix = steps.matrices(False) * torch.sigmoid(_steps_first(_before_silu(conv)))[:, :, :, None]
    matrix = steps.by_token(matrix @ _taps(conv.arguments, steps.length))[0].sum(0)
    middle = (steps.length - 1) // 2
    return matrix[:, middle] * gate[0, middle, :, None]


def _min_max(x: Tensor) -> Tensor:
    return (x - x.min()) / (x.max() - x.min()).clamp(min=torch.finfo(x.dtype).tiny)


def _roll_out(maps: list[Tensor]) -> Tensor:
    """Each map as every row of a matrix, plus the identity, rows normalised; later blocks on the left."""
    length = len(maps[0])
    identity = torch.eye(length, dtype=maps[0].dtype, device=maps[0].device)
    product = identity
    for a in maps:
        step = a.expand(length, -1) + identity
        product = step / step.sum(-1, keepdim=True) @ product
    return product
