"""Losses of dense tasks, as MTMamba is trained (arXiv:2407.02228, section 4.1)."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import nearest

IGNORED = 255  # label of a pixel that says nothing
EDGE_WEIGHT = 0.95  # of a pixel on a boundary; others weigh the rest

Loss = Callable[[Tensor, Tensor], Tensor]


def segmentation_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits (b, classes, h, w) and class numbers (b, h, w); 255 is left out."""
    return _mean(F.cross_entropy(output, target.long(), ignore_index=IGNORED, reduction="none"), target != IGNORED)


def saliency_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits (b, 2, h, w) and labels (b, h, w) of 0 and 1, both weighing as much; 255 is left out."""
    known = target != IGNORED
    salient = target == 1
    share = (salient & known).sum() / known.sum().clamp(min=1)
    pixels = F.cross_entropy(output, target.long(), ignore_index=IGNORED, reduction="none")
    return _mean(pixels * torch.where(salient, 1 - share, share), known)


def depth_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of depths (b, 1, h, w); pixels of a depth that is not positive and finite are left out."""
    known = valid_depth(target)
    return _mean((output - torch.where(known, target, output)).abs(), known)


def normals_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of normals (b, 3, h, w), which are brought to length 1; targets of length 0 are left out."""
    known = valid_normals(target)
    pixels = (F.normalize(output, dim=1) - F.normalize(target, dim=1)).abs().mean(1)
    return _mean(pixels, known)


def edge_loss(output: Tensor, target: Tensor) -> Tensor:
    """Weighted binary cross-entropy of logits (b, 1, h, w) and labels of that shape, 0 or 1; 255 is left out."""
    known = target != IGNORED
    positive = (target == 1).to(output.dtype)
    weight = torch.where(positive > 0, EDGE_WEIGHT, 1 - EDGE_WEIGHT)
    return _mean(F.binary_cross_entropy_with_logits(output, positive, weight, reduction="none"), known)


LOSSES: dict[str, Loss] = {
    "semseg": segmentation_loss,
    "depth": depth_loss,
    "human_parts": segmentation_loss,
    "sal": saliency_loss,
    "normals": normals_loss,
    "edge": edge_loss,
}
NYUD_WEIGHTS = {"semseg": 1.0, "depth": 1.0, "normals": 10.0, "edge": 50.0}  # of MTMamba++, with combine="sum"


class MultiTaskLoss(nn.Module):
    """Losses of several tasks, and one number of them.

    Args:
        tasks: Names of tasks, each in `LOSSES`; `own` adds others.
        weights: Weight of each task; 1 where none is given.
        combine: "log": the weighted sum of the losses' logarithms, so that none outweighs the others by its scale, as
            MTMamba is trained; "sum": the weighted sum, as MTMamba++ on NYUDv2.
        own: Losses (output, target) -> number of further tasks, or in place of ours.

    Raises:
        ValueError: a task has no loss, a weight has no task, or `combine` is unknown.
    """

    def __init__(
        self,
        tasks: Mapping[str, int] | list[str] | tuple[str, ...],
        weights: Mapping[str, float] | None = None,
        combine: str = "log",
        own: Mapping[str, Loss] | None = None,
    ):
        super().__init__()
        known = {**LOSSES, **(own or {})}
        for task in tasks:
            if task not in known:
                raise ValueError(f"task {task!r} has no loss{nearest(task, known)}; give one by own")
        for task in weights or {}:
            if task not in tasks:
                raise ValueError(f"weight of {task!r}, which is no task{nearest(task, tasks)}")
        if combine not in ("log", "sum"):
            raise ValueError(f"combine must be 'log' or 'sum', got {combine!r}")
        self.losses = {task: known[task] for task in tasks}
        self.weights = {task: float((weights or {}).get(task, 1.0)) for task in tasks}
        self.combine = combine

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses by task, and their combination under "total".

        Raises:
            ValueError: a task has no output or no target.
        """
        for name, given in (("output", outputs), ("target", targets)):
            if missing := self.losses.keys() - given.keys():
                raise ValueError(f"no {name} for {', '.join(sorted(missing))}")
        losses = {task: loss(outputs[task], targets[task]) for task, loss in self.losses.items()}
        shares = [
            self.weights[task] * (torch.log(value.clamp(min=1e-8)) if self.combine == "log" else value)
            for task, value in losses.items()
        ]
        return {**losses, "total": torch.stack(shares).sum()}


def valid_depth(target: Tensor) -> Tensor:
    """Where a depth is known: finite and positive."""
    return target.isfinite() & (target > 0)


def valid_normals(target: Tensor) -> Tensor:
    """Where a normal (b, 3, h, w) is known: not of length 0; (b, h, w)."""
    return target.abs().sum(1) > 0


def _mean(pixels: Tensor, known: Tensor) -> Tensor:
    """Mean over known pixels, 0 without any."""
    return (pixels * known).sum() / known.sum().clamp(min=1)
