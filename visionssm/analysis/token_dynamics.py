"""How tokens grow and shrink through the blocks (token dynamics, arXiv:2410.03292, section 3)."""

from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from ..layers import SelectiveSSM
from .receptive_field import _frozen


@dataclass(frozen=True)
class RouteSpectrum:
    """Eigenvalues of (mu + mu^T) / 2 with mu = S_C^T S_B, of which at most 2 N differ from 0.

    S_B and S_C (N x d) project tokens to B and C. In the limit of many layers tokens shrink to 0 where all eigenvalues
    are negative, and grow, at rates of their own, where one is positive.
    """

    largest: float
    smallest: float
    positive: int
    negative: int


@dataclass(frozen=True)
class LayerDynamics:
    """One block.

    Attributes:
        name: Of the block.
        before: Mean, smallest and largest Euclidean norm of the tokens of the stream before the block.
        after: The same after it.
        rank_correlation: Spearman's correlation of the tokens' norms after the block with those after the block before
            it, mean over images; None for the first block, and where the number of tokens changed between.
        routes: One for each route of each scan with projections of its own, in the order of the modules.
    """

    name: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]
    rank_correlation: float | None
    routes: tuple[RouteSpectrum, ...]


@torch.no_grad()
def token_dynamics(model: nn.Module, images: Tensor) -> list[LayerDynamics]:
    """Norms of the tokens and spectra of the scans, block by block.

    Args:
        model: A model of this package; evaluation mode for the time of the call. A compiled one is unwrapped.
        images: (b, c, h, w).

    Raises:
        ValueError: no block of the model has a selective scan.
    """
    model = getattr(model, "_orig_mod", model)
    blocks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "mixer", None), nn.Module)
        and any(isinstance(m, SelectiveSSM) for m in module.mixer.modules())
    }
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no block whose mixer scans with projected B and C")
    norms: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple, output) -> None:
            after = output[0] if isinstance(output, tuple) else output
            norms[name] = _norms(args[0]), _norms(after)

        return hook

    def watched(name: str, run):
        def scored(x: Tensor, *args):
            out = run(x, *args)
            norms[name] = _norms(x), _norms(out[0])
            return out

        return scored

    handles = [block.register_forward_hook(keep(name)) for name, block in blocks.items()]
    # a block after which tokens are left out is not called as a module
    pruning = [(name, block) for name, block in blocks.items() if hasattr(block, "forward_scored")]
    try:
        for name, block in pruning:
            block.forward_scored = watched(name, block.forward_scored)
        with _frozen(model):
            model(images)
    finally:
        for _, block in pruning:
            block.__dict__.pop("forward_scored", None)
        for handle in handles:
            handle.remove()
    found: list[LayerDynamics] = []
    last: Tensor | None = None
    for name, (before, after) in norms.items():  # in the order of the calls
        same = last is not None and last.shape == after.shape and after.shape[1] > 1
        correlation = _correlation(last, after) if same and last is not None else None
        routes = [
            spectrum(b, c)
            for ssm in blocks[name].mixer.modules()
            if isinstance(ssm, SelectiveSSM)
            for b, c in _projections(ssm)
        ]
        found.append(LayerDynamics(name, _summary(before), _summary(after), correlation, tuple(routes)))
        last = after
    return found


def spectrum(b: Tensor, c: Tensor) -> RouteSpectrum:
    """The spectrum of one route.

    Args:
        b: Projection to B, (N, d).
        c: Projection to C, (N, d).
    """
    b, c = b.double(), c.double()
    small = torch.cat([torch.cat([b @ c.T, b @ b.T], 1), torch.cat([c @ c.T, c @ b.T], 1)]) / 2
    values = torch.linalg.eigvals(small).real
    # at most d are of the d x d matrix: with N > d / 2 the small one has zeros besides
    threshold = values.abs().max() * 1e-9
    return RouteSpectrum(
        values.max().item(), values.min().item(), int((values > threshold).sum()), int((values < -threshold).sum())
    )


def _projections(ssm: SelectiveSSM) -> list[tuple[Tensor, Tensor]]:
    _, b, c = ssm.x_proj_weight.detach().split(ssm.splits, dim=1)
    return list(zip(b, c, strict=True))


def _norms(stream: Tensor) -> Tensor:
    """Norms of the tokens (b, L) of (b, L, d) or (b, h, w, d)."""
    return stream.detach().float().norm(dim=-1).flatten(1)


def _summary(norms: Tensor) -> tuple[float, float, float]:
    return norms.mean().item(), norms.min().item(), norms.max().item()


def _correlation(before: Tensor, after: Tensor) -> float:
    pairs = zip(before.cpu().numpy(), after.cpu().numpy(), strict=True)
    values = [spearmanr(a, b).statistic for a, b in pairs]
    return float(sum(values) / len(values))
