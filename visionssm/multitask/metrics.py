"""Metrics of dense tasks under the names of the multi-task papers, by torchmetrics."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError, Metric
from torchmetrics.classification import BinaryPrecisionRecallCurve, MulticlassJaccardIndex

from ..errors import nearest
from .losses import IGNORED, valid_depth, valid_normals

_THRESHOLDS = 99


class SegmentationMetric(nn.Module):
    """Mean intersection over union, in percent, of logits (b, classes, h, w) and class numbers (b, h, w)."""

    name = "miou"

    def __init__(self, classes: int):
        super().__init__()
        self.metric: Metric = MulticlassJaccardIndex(classes, ignore_index=IGNORED)

    def update(self, output: Tensor, target: Tensor) -> None:
        self.metric.update(output.argmax(1), target.long())

    def compute(self) -> float:
        return 100 * self.metric.compute().item()


class DepthMetric(nn.Module):
    """Root mean squared error of depths (b, 1, h, w) over pixels whose depth is known."""

    name = "rmse"

    def __init__(self, classes: int):
        super().__init__()
        self.metric: Metric = MeanSquaredError(squared=False)

    def update(self, output: Tensor, target: Tensor) -> None:
        known = valid_depth(target)
        if known.any():
            self.metric.update(output[known], target[known])

    def compute(self) -> float:
        return self.metric.compute().item()


class NormalsMetric(nn.Module):
    """Mean angle in degrees between normals (b, 3, h, w) over pixels whose normal is known."""

    name = "merr"

    def __init__(self, classes: int):
        super().__init__()
        self.metric: Metric = MeanMetric()

    def update(self, output: Tensor, target: Tensor) -> None:
        known = valid_normals(target)
        if known.any():
            cosine = F.cosine_similarity(output.double(), target.double(), dim=1).clamp(-1, 1)
            self.metric.update(torch.rad2deg(torch.acos(cosine))[known].float())

    def compute(self) -> float:
        return self.metric.compute().item()


class BestFScore(nn.Module):
    """Largest F-score, in percent, over one threshold for the whole data set.

    For saliency, logits (b, 2, h, w), beta^2 is 0.3. For boundaries, logits (b, 1, h, w), beta is 1 and pixels are
    compared one by one: published boundary scores match within a tolerance of some pixels, and are higher.
    """

    def __init__(self, classes: int, name: str, beta2: float):
        super().__init__()
        self.name, self.beta2 = name, beta2
        self.metric: Metric = BinaryPrecisionRecallCurve(thresholds=_THRESHOLDS, ignore_index=IGNORED)

    def update(self, output: Tensor, target: Tensor) -> None:
        share = output.softmax(1)[:, 1] if output.shape[1] == 2 else output.sigmoid()[:, 0]
        self.metric.update(share, target.reshape(share.shape).long())

    def compute(self) -> float:
        precision, recall, _ = self.metric.compute()
        score = (1 + self.beta2) * precision * recall / (self.beta2 * precision + recall).clamp(min=1e-12)
        return 100 * score.nan_to_num(0).max().item()  # where nothing is taken, no precision exists


METRICS = {
    "semseg": SegmentationMetric,
    "depth": DepthMetric,
    "human_parts": SegmentationMetric,
    "sal": lambda classes: BestFScore(classes, "maxf", 0.3),
    "normals": NormalsMetric,
    "edge": lambda classes: BestFScore(classes, "odsf", 1.0),
}


class MultiTaskMetrics(nn.Module):
    """Metrics of several tasks; states of all processes are joined by torchmetrics.

    Args:
        tasks: Output channels by task, as of the model; each of a name in `METRICS`.

    Raises:
        ValueError: a task has no metric.
    """

    def __init__(self, tasks: Mapping[str, int]):
        super().__init__()
        for task in tasks:
            if task not in METRICS:
                raise ValueError(f"task {task!r} has no metric{nearest(task, METRICS)}; known: {', '.join(METRICS)}")
        self.metrics = nn.ModuleDict({task: METRICS[task](classes) for task, classes in tasks.items()})

    @torch.no_grad()
    def update(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Count a batch: outputs of the model, and targets as of the losses."""
        for task, metric in self.metrics.items():
            metric.update(outputs[task], targets[task])

    def compute(self) -> dict[str, float]:
        """Numbers under names such as "semseg_miou", "depth_rmse", "normals_merr", "edge_odsf"."""
        return {f"{task}_{metric.name}": metric.compute() for task, metric in self.metrics.items()}

    def reset(self) -> None:
        """Begin anew."""
        for metric in self.metrics.values():
            metric.metric.reset()


def gain(ours: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Mean relative gain over models of one task each, in percent (Delta_m of arXiv:1904.08918).

    Args:
        ours: Numbers of `MultiTaskMetrics.compute`.
        single: The same of single-task models.

    Raises:
        ValueError: the names differ, or a number to compare with is 0.
    """
    if ours.keys() != single.keys():
        raise ValueError(f"names differ: {sorted(ours)} and {sorted(single)}")
    if not all(single.values()) or any(math.isnan(value) for value in single.values()):
        raise ValueError("a number to compare with is 0 or not a number")
    signs = {name: -1 if name.endswith(("_rmse", "_merr")) else 1 for name in ours}
    return 100 * sum(signs[name] * (ours[name] - single[name]) / single[name] for name in ours) / len(ours)
