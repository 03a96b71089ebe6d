"""Removing the parts of a trained model that matter least, one at a time (Mamba-Shedder, arXiv:2501.17088).

The search needs no training: in each step every candidate is left out in turn, and the one whose absence hurts a
calibration set least goes for good. Published for language models; no figures for vision exist.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import nearest
from ..models._removal import check_removed, removable, stand_ins

__all__ = ["METRICS", "SheddingStep", "Shedding", "shed", "without"]

METRICS = ("loss", "top1", "kl")


@dataclass(frozen=True)
class SheddingStep:
    """One removal.

    Attributes:
        removed: Path of the part.
        value: The metric without it and all parts before.
        candidates: The metric without each candidate, by path.
    """

    removed: str
    value: float
    candidates: dict[str, float]


@dataclass
class Shedding:
    """What a search removed.

    Attributes:
        metric: Name of the metric; smaller is better.
        whole: The metric of the whole model.
        steps: The removals in their order.
    """

    metric: str
    whole: float
    steps: list[SheddingStep] = field(default_factory=list)

    @property
    def removed(self) -> tuple[str, ...]:
        """Paths of all removed parts, to build the pruned model with."""
        return tuple(step.removed for step in self.steps)


@contextmanager
def without(model: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Within this context a live model lacks parts; after it, its own modules are back.

    Args:
        model: A model of this package.
        paths: Parts as `visionssm.models.removable` lists them.

    Raises:
        ValueError: these parts cannot be removed together.
    """
    check_removed(model, paths)
    kept = []
    try:
        for path in paths:
            for name, module in stand_ins(model, path).items():
                parent, _, child = name.rpartition(".")
                owner = model.get_submodule(parent)
                kept.append((owner, child, getattr(owner, child)))
                setattr(owner, child, module.train(model.training))
        yield
    finally:
        for owner, child, module in reversed(kept):
            setattr(owner, child, module)


def shed(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    *,
    kind: str = "block",
    metric: str = "loss",
    candidates: Sequence[str] | None = None,
    start: Shedding | None = None,
    on_step: Callable[[Shedding], None] | None = None,
) -> Shedding:
    """Find parts to remove (section 3 of the paper); the model itself is left as it was.

    Greedy: the candidate with the smallest metric goes, the first in the model's order among equals. A metric that is
    not a number is never the smallest. Costs one pass over the data for each candidate of each step.

    Args:
        model: A classifier of this package, called in evaluation mode on the device of its parameters.
        loader: Calibration data, iterated anew for each candidate and in the same order: pairs of images (b, c, h, w)
            and labels (b), int64.
        steps: Number of parts to remove, with those of `start`.
        kind: Kind of the candidates: "block", "branch", "ssm" or "route", see `visionssm.models.removable`.
        metric: "loss", the mean cross entropy; "top1", the share of wrong classes, equal ones by their loss; "kl", the
            mean divergence of the prediction from the whole model's, which needs no labels.
        candidates: Paths to choose from; all of the kind if None.
        start: A search of the same model, data and metric to continue.
        on_step: Called after each step, to write what is found so far.

    Returns:
        The removals.

    Raises:
        ValueError: an unknown kind, metric or candidate, more steps than can be removed, or no data.
        RuntimeError: no candidate of a step has a finite metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(map(repr, METRICS))}, got {metric!r}")
    known = removable(model, kind)
    for path in candidates or ():
        if path not in known:
            raise ValueError(f"{path!r} is no {kind} that can be removed{nearest(path, known)}")
    if start is not None and start.metric != metric:
        raise ValueError(f"the search to continue has the metric {start.metric!r}, not {metric!r}")
    left = [path for path in known if candidates is None or path in candidates]
    most = _most(model, left)
    if not 0 < steps <= most:
        raise ValueError(f"{steps} steps asked for, but from 1 to {most} of the {len(left)} candidates can be removed")

    def measure(removed: Sequence[str], whole: list[Tensor] | None) -> tuple[float, float]:
        with without(model, removed):
            return _measure(model, loader, metric, whole)

    training = model.training
    model.eval()
    try:
        whole = _log_probabilities(model, loader) if metric == "kl" else None
        found = start or Shedding(metric, measure((), whole)[0])
        found = Shedding(metric, found.whole, list(found.steps))
        while len(found.steps) < steps:
            values = {path: measure((*found.removed, path), whole) for path in _allowed(model, left, found.removed)}
            finite = {path: value for path, value in values.items() if all(map(math.isfinite, value))}
            if not finite:
                raise RuntimeError(f"step {len(found.steps) + 1}: the metric of every candidate is NaN or infinite")
            best = min(finite, key=lambda path: finite[path])
            found.steps.append(SheddingStep(best, finite[best][0], {path: v[0] for path, v in values.items()}))
            if on_step is not None:
                on_step(found)
    finally:
        model.train(training)
    return found


def _most(model: nn.Module, candidates: Sequence[str]) -> int:
    chosen: list[str] = []
    for path in candidates:
        if path in _allowed(model, candidates, chosen):
            chosen.append(path)
    return len(chosen)


def _allowed(model: nn.Module, candidates: Sequence[str], removed: Sequence[str]) -> list[str]:
    """Those that can be removed beside others: the last block of a stage, or the other branch of a block, cannot."""

    def fits(path: str) -> bool:
        try:
            check_removed(model, (*removed, path))
        except ValueError:
            return False
        return True

    return [path for path in candidates if fits(path)]


def _batches(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(model.parameters()).device
    empty = True
    for images, labels in loader:
        empty = False
        if not torch.isfinite(images).all():
            raise ValueError("calibration images must be finite, found NaN or infinity")
        yield images.to(device), labels.to(device)
    if empty:
        raise ValueError("the calibration data is empty; give a loader that can be iterated more than once")


@torch.no_grad()
def _log_probabilities(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [F.log_softmax(model(images).double(), -1).cpu() for images, _ in _batches(model, loader)]


@torch.no_grad()
def _measure(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], metric: str, whole: list[Tensor] | None
) -> tuple[float, float]:
    """The metric, and what decides between equals; summed in float64."""
    count, loss, wrong, divergence = 0, 0.0, 0, 0.0
    for i, (images, labels) in enumerate(_batches(model, loader)):
        found = F.log_softmax(model(images).double(), -1)
        count += len(found)
        if whole is not None:
            expected = whole[i].to(found.device)
            divergence += float(F.kl_div(found, expected, reduction="sum", log_target=True))
            continue
        loss += float(F.nll_loss(found, labels, reduction="sum"))
        wrong += int((found.argmax(-1) != labels).sum())
    if whole is not None:
        return divergence / count, 0.0
    return (wrong / count, loss / count) if metric == "top1" else (loss / count, 0.0)
