"""Rewritings of weights that keep a model's function and even out its channels' ranges (MambaQuant, arXiv:2501.13484).

What is rounded afterwards loses less. Scales and rotations are folded into the weights on both sides where that is
possible; a scale inside a gate, a shift of the low-rank step size and a rotation before the last projection are
computed along the way, by modules that `structure` gives to a fresh model.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import SS2D, MambaMixer, SelectiveSSM, StreamBlock
from ..models._plain import PlainModel

__all__ = ["REWRITINGS", "applicable", "hadamard_rotation", "rewrite", "smoothing_factors", "structure"]


def smoothing_factors(activations: Tensor, weights: Tensor) -> Tensor:
    """What to divide channels by so that they and the weights behind them share the burden (SmoothQuant's rule).

    Args:
        activations: Largest magnitude of each channel (d), from calibration data.
        weights: Largest magnitude of the weights that multiply each channel (d).

    Returns:
        sqrt(activations / weights) (d), at least 0.01.
    """
    return (activations.sqrt() / weights.clamp(min=1e-5).sqrt()).clamp(min=1e-2)


def hadamard_rotation(size: int, generator: torch.Generator | None = None, dtype=torch.float64) -> Tensor:
    """A random orthogonal matrix (size, size) that spreads each coordinate over all.

    Random signs times Hadamard's matrix where the size is a power of 2; for others, the orthogonal factor of a matrix
    of normal values.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if size & (size - 1):
        q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        return (q * r.diagonal().sign()).to(dtype)
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    signs = torch.randint(0, 2, (size, 1), generator=generator) * 2 - 1
    return (signs * h / math.sqrt(size)).to(dtype)


class ScaledSiLU(nn.Module):
    """x sigmoid(scale x): SiLU of an input that was divided by a scale, divided by it too.

    Args:
        scale: (d).
    """

    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to the same."""
        return x * torch.sigmoid(self.scale * x)


class RotatedLinear(nn.Linear):
    """A linear layer that rotates its input first; made of a plain one, whose weight is rotated back.

    Args:
        linear: The layer.
        rotation: Orthogonal (in, in).
    """

    rotation: Tensor

    def __init__(self, linear: nn.Linear, rotation: Tensor):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("rotation", rotation)
        self.weight.data = self.weight @ rotation

    def forward(self, x: Tensor) -> Tensor:
        """As the layer it was made of."""
        return super().forward(x @ self.rotation)


Loader = Iterable[Any]


class _Statistics:
    """What calibration data makes of chosen tensors: largest magnitudes, middle of the range, mean products."""

    def __init__(self) -> None:
        self.largest = self.low = self.high = self.products = None
        self.count = 0

    def add(self, x: Tensor) -> None:
        rows = x.detach().flatten(0, -2)
        if not torch.isfinite(rows).all():
            raise ValueError("calibration data must be finite, found NaN or infinity")
        low, high, products = rows.amin(0), rows.amax(0), rows.double().T @ rows.double()
        first = self.low is None
        self.low = low if first else torch.minimum(self.low, low)
        self.high = high if first else torch.maximum(self.high, high)
        self.products = products if first else self.products + products
        self.count += len(rows)
        self.largest = torch.maximum(self.low.abs(), self.high.abs())


def _observe(
    model: nn.Module, loader: Loader, taps: Sequence[tuple[nn.Module, Callable[[Any, Any], dict[Any, Tensor]]]]
) -> dict[Any, _Statistics]:
    """Run the data; each tap is a module and what to read of its input and output, by a key."""
    found: dict[Any, _Statistics] = {}

    def hook(read: Callable) -> Callable:
        def look(_: nn.Module, inputs: Any, output: Any) -> None:
            for key, value in read(inputs[0], output).items():
                found.setdefault(key, _Statistics()).add(value)

        return look

    handles = [module.register_forward_hook(hook(read)) for module, read in taps]
    try:
        _run(model, loader)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _observe_steps(model: nn.Module, loader: Loader, scans: Sequence[SelectiveSSM]) -> dict[Any, _Statistics]:
    """Run the data; the low-rank step sizes by number of the scan and route, however the scan is called."""
    found: dict[Any, _Statistics] = {}

    def watched(i: int, ssm: SelectiveSSM) -> Callable:
        project = ssm.project

        def look(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            parts = project(u)
            for k in range(ssm.routes):
                found.setdefault((i, k), _Statistics()).add(parts[0][:, :, k])
            return parts

        return look

    try:
        for i, ssm in enumerate(scans):
            ssm.project = watched(i, ssm)  # type: ignore[method-assign]
        _run(model, loader)
    finally:
        for ssm in scans:
            del ssm.project
    return found


def _run(model: nn.Module, loader: Loader) -> None:
    training, device, empty = model.training, next(model.parameters()).device, True
    try:
        model.eval()
        for batch in loader:
            images = batch[0] if isinstance(batch, tuple | list) else batch
            if not torch.isfinite(images).all():
                raise ValueError("calibration images must be finite, found NaN or infinity")
            model(images.to(device))
            empty = False
    finally:
        model.train(training)
    if empty:
        raise ValueError("the calibration data is empty")


def _rotation(size: int, like: Tensor, products: Tensor | None, generator: torch.Generator) -> Tensor:
    """A random rotation; with the mean products of data, first to its principal axes ("KLT-enhanced")."""
    rotation = hadamard_rotation(size, generator)
    if products is not None:
        rotation = torch.linalg.eigh(products.cpu()).eigenvectors @ rotation
    return rotation.to(like)


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, StreamBlock) and isinstance(m.mixer, MambaMixer)]


def _scans(model: nn.Module) -> list[SelectiveSSM]:
    return [m for m in model.modules() if type(m) is SelectiveSSM]


def _gated(model: nn.Module) -> list[nn.Module]:
    """Mixers whose last projection follows a gate at once."""
    mixers = [m for m in model.modules() if type(m).__name__ in _PLAIN_MIXERS and isinstance(m, MambaMixer)]
    return [m for m in mixers if m.route_gate is None] + [m for m in model.modules() if type(m) is SS2D and m.gated]


_PLAIN_MIXERS = ("MambaMixer", "BidirectionalMixer")  # subclasses may gate elsewhere


def _convolved(model: nn.Module) -> list[nn.Module]:
    plain = (m for m in model.modules() if type(m) is SS2D and isinstance(m.conv, nn.Conv2d))  # some sample instead
    return [*(m for m in model.modules() if isinstance(m, MambaMixer)), *plain]


def _rotates(model: nn.Module) -> bool:
    """Whether all that writes and reads the stream is linear up to norms without a mean."""
    blocks = _blocks(model)
    if getattr(type(model), "run_block", None) is not PlainModel.run_block:  # blocks between which the stream changes
        return False
    names = ("patch_embed", "pos_embed", "norm", "head")
    whole = bool(blocks) and all(hasattr(model, name) for name in names) and len(blocks) == len(model.blocks)
    if not whole or not isinstance(model.head, nn.Linear) or model.head.in_features != model.num_features:
        return False
    if not isinstance(getattr(model.patch_embed, "proj", None), nn.Conv2d) or hasattr(model, "pos_embed_cls"):
        return False
    norms = [model.norm, *(block.norm for block in blocks)]
    return all("rms" in type(norm).__name__.lower() for norm in norms) and len(list(model.head.parameters())) > 0


def _fold_norm(model: nn.Module, loader: Loader | None, generator: torch.Generator) -> None:
    for block in _blocks(model):
        block.mixer.in_proj.weight.mul_(block.norm.weight)
        block.norm.weight.fill_(1)


def _center(model: nn.Module, loader: Loader | None, generator: torch.Generator) -> None:
    scans = _scans(model)
    found = _observe_steps(model, loader, scans)
    for i, ssm in enumerate(scans):
        shift = torch.stack([(found[i, k].low + found[i, k].high) / 2 for k in range(ssm.routes)]).to(ssm.dt_weight)
        ssm.dt_bias.add_(torch.einsum("kdr,kr->kd", ssm.dt_weight, shift) / ssm.dt_bias_scale)
        ssm.delta_shift = shift if ssm.delta_shift is None else ssm.delta_shift + shift


def _rotate_stream(model: nn.Module, loader: Loader | None, generator: torch.Generator) -> None:
    _fold_norm(model, loader, generator)
    products = None
    if loader is not None:
        last = _blocks(model)[-1]
        products = _observe(model, loader, [(last.norm, lambda _, out: {0: out})])[0].products
    q = _rotation(model.num_features, model.head.weight, products, generator)
    proj = model.patch_embed.proj
    proj.weight.copy_((q.T @ proj.weight.flatten(1)).view_as(proj.weight))
    if proj.bias is not None:
        proj.bias.copy_(proj.bias @ q)
    model.pos_embed.copy_(model.pos_embed @ q)
    if model.cls_token is not None:
        model.cls_token.copy_(model.cls_token @ q)
    for block in _blocks(model):
        block.mixer.in_proj.weight.copy_(block.mixer.in_proj.weight @ q)
        block.mixer.out_proj.weight.copy_(q.T @ block.mixer.out_proj.weight)
    model.head.weight.copy_((model.head.weight * model.norm.weight) @ q)
    model.norm.weight.fill_(1)


def _smooth_gate(model: nn.Module, loader: Loader | None, generator: torch.Generator) -> None:
    mixers = _gated(model)
    found = _observe(model, loader, [(m.out_proj, lambda x, _, i=i: {i: x}) for i, m in enumerate(mixers)])
    for i, mixer in enumerate(mixers):
        out = mixer.out_proj
        turn = out.rotation if isinstance(out, RotatedLinear) else None
        weight = out.weight if turn is None else out.weight @ turn.T
        scale = smoothing_factors(found[i].largest, weight.abs().amax(0))
        dim = len(scale)
        mixer.in_proj.weight[dim:].div_(scale[:, None])
        if mixer.in_proj.bias is not None:
            mixer.in_proj.bias[dim:].div_(scale)
        before = mixer.gate_act.scale.detach() if isinstance(mixer.gate_act, ScaledSiLU) else 1.0
        mixer.gate_act = ScaledSiLU(before * scale)
        out.weight.copy_(weight * scale if turn is None else (weight * scale) @ turn)


def _rotate_gate(model: nn.Module, loader: Loader | None, generator: torch.Generator) -> None:
    for mixer in _gated(model):
        linear = mixer.out_proj
        q = hadamard_rotation(linear.in_features, generator).to(linear.weight)
        if isinstance(linear, RotatedLinear):
            q, linear.weight.data = linear.rotation @ q, linear.weight @ linear.rotation.T
        mixer.out_proj = RotatedLinear(linear, q)


def _smooth_conv(model: nn.Module, loader: Loader | None, generator: torch.Generator) -> None:
    mixers = _convolved(model)
    found = {}
    if loader is not None:

        def read(i: int, mixer: nn.Module) -> Callable:
            return lambda x, _: {i: F.linear(x, *_half(mixer.in_proj, getattr(mixer, "gated", True)))}

        found = _observe(model, loader, [(m.in_proj, read(i, m)) for i, m in enumerate(mixers)])
    for i, mixer in enumerate(mixers):
        rows, bias = _half(mixer.in_proj, getattr(mixer, "gated", True))
        taps = (
            mixer.conv_weight.abs().amax((0, 2))
            if isinstance(mixer, MambaMixer)
            else mixer.conv.weight.abs().amax((1, 2, 3))
        )
        # before data is seen, a row's norm stands for its channel's range
        scale = smoothing_factors(found[i].largest if found else rows.norm(dim=1), taps)
        rows.div_(scale[:, None])
        if bias is not None:
            bias.div_(scale)
        if isinstance(mixer, MambaMixer):
            mixer.conv_weight.mul_(scale[:, None])
        else:
            mixer.conv.weight.mul_(scale[:, None, None, None])


def _half(linear: nn.Linear, gated: bool = True) -> tuple[Tensor, Tensor | None]:
    count = linear.out_features // (2 if gated else 1)
    return linear.weight[:count], None if linear.bias is None else linear.bias[:count]


def _smooth_step(model: nn.Module, loader: Loader | None, generator: torch.Generator) -> None:
    scans = _scans(model)
    found = {} if loader is None else _observe_steps(model, loader, scans)
    for i, ssm in enumerate(scans):
        rows = ssm.x_proj_weight[:, : ssm.splits[0]]
        size = torch.stack([found[i, k].largest for k in range(ssm.routes)]) if found else rows.norm(dim=2)
        scale = smoothing_factors(size.to(rows), ssm.dt_weight.abs().amax(1))
        rows.div_(scale[..., None])
        ssm.dt_weight.mul_(scale[:, None])
        if ssm.delta_shift is not None:
            ssm.delta_shift.div_(scale)


def _rotate_step(model: nn.Module, loader: Loader | None, generator: torch.Generator) -> None:
    scans = _scans(model)
    found = {} if loader is None else _observe_steps(model, loader, scans)
    for i, ssm in enumerate(scans):
        rank = ssm.splits[0]
        for k, (weight, step) in enumerate(zip(ssm.x_proj_weight, ssm.dt_weight, strict=True)):
            products = found[i, k].products if found else None
            rotation = _rotation(rank, weight, products, generator)
            weight[:rank] = rotation.T @ weight[:rank]
            step.copy_(step @ rotation)
            if ssm.delta_shift is not None:
                ssm.delta_shift[k] = ssm.delta_shift[k] @ rotation


def _smooth_states(model: nn.Module, loader: Loader | None, generator: torch.Generator) -> None:
    for ssm in _scans(model):
        rank, states, _ = ssm.splits
        b, c = ssm.x_proj_weight[:, rank : rank + states], ssm.x_proj_weight[:, rank + states :]
        scale = smoothing_factors(b.norm(dim=2), c.norm(dim=2)).clamp(max=100)
        b.div_(scale[..., None])
        c.mul_(scale[..., None])


REWRITINGS = {
    "norm": _fold_norm,
    "center": _center,
    "rotate_stream": _rotate_stream,
    "smooth_gate": _smooth_gate,
    "rotate_gate": _rotate_gate,
    "smooth_conv": _smooth_conv,
    "smooth_step": _smooth_step,
    "rotate_step": _rotate_step,
    "smooth_states": _smooth_states,
}
_NEED_DATA = ("center", "smooth_gate")


def applicable(model: nn.Module) -> tuple[str, ...]:
    """The rewritings that a model has a place for, in the order in which they are applied."""
    blocks, scans, gated = _blocks(model), _scans(model), _gated(model)
    places = {
        "norm": blocks and not any(getattr(block.norm, "bias", None) is not None for block in blocks),
        "center": scans,
        "rotate_stream": _rotates(model),
        "smooth_gate": gated,
        "rotate_gate": gated,
        "smooth_conv": _convolved(model),
        "smooth_step": scans,
        "rotate_step": scans,
        "smooth_states": scans,
    }
    return tuple(step for step in REWRITINGS if places[step])


@torch.no_grad()
def rewrite(
    model: nn.Module, steps: Sequence[str] | None = None, *, loader: Loader | None = None, seed: int = 0
) -> nn.Module:
    """Rewrite the weights of a model, in place, so that its function stays and its channels' ranges even out.

    "norm": the norm's weight goes into the projection behind it. "rotate_stream": the residual stream of a plain model
    with root-mean-square norms turns, with all that writes and reads it. "smooth_gate", "smooth_conv", "smooth_step",
    "smooth_states": scales between gate and last projection, projection and convolution, the two parts of the step
    size's projection, B and C. "center": the middle of the low-rank step size goes into its bias. "rotate_step",
    "rotate_gate": rotations of the low-rank step size, and before the last projection.

    Args:
        model: A model of this package.
        steps: Names of rewritings, applied in this order; all that the model has a place for if None, without those
            that need data if there is none.
        loader: Calibration data: batches of images (b, c, h, w), or pairs of images and labels, read once for each
            step. Scales then go by activations, and rotations first to principal axes; without it, by weights on the
            premise of tokens of unit variance.
        seed: Of the rotations.

    Returns:
        The model; `structure` gives a fresh one the modules that steps added.

    Raises:
        ValueError: an unknown rewriting, one that needs data without any, or data that is empty or not finite.
        TypeError: the model has no place for a rewriting.
    """
    can = applicable(model)
    if steps is None:
        steps = tuple(step for step in can if loader is not None or step not in _NEED_DATA)
        if not steps:
            raise TypeError(f"{type(model).__name__} has no place for any rewriting")
    for step in steps:
        if step not in REWRITINGS:
            raise ValueError(f"steps must be of {', '.join(REWRITINGS)}, got {step!r}")
        if step == "norm" and step not in can and _blocks(model):
            raise TypeError(
                "the norm has a bias, which the projection behind it cannot take; leave out the step 'norm'"
            )
        if step not in can:
            raise TypeError(
                f"{type(model).__name__} has no place for the rewriting {step!r}; it has for {', '.join(can)}"
            )
        if step in _NEED_DATA and loader is None:
            raise ValueError(f"the rewriting {step!r} needs calibration data")
    generator = torch.Generator().manual_seed(seed)
    for step in steps:
        REWRITINGS[step](model, loader, generator)
    return model


@torch.no_grad()
def structure(model: nn.Module, steps: Sequence[str]) -> nn.Module:
    """Give a fresh model the modules that rewritings add, without effect until their weights are loaded."""
    if "center" in steps:
        for ssm in _scans(model):
            ssm.delta_shift = ssm.dt_weight.new_zeros(ssm.routes, ssm.splits[0])
    for mixer in _gated(model):
        size = mixer.out_proj.in_features
        if "smooth_gate" in steps:
            mixer.gate_act = ScaledSiLU(mixer.out_proj.weight.new_ones(size))
        if "rotate_gate" in steps:
            mixer.out_proj = RotatedLinear(mixer.out_proj, torch.eye(size).to(mixer.out_proj.weight))
    return model
