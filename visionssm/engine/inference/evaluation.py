"""Loss, top-1 and top-5 over a loader, and what single classes come to."""

import heapq
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.task import ClassificationEvaluator
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule

from ...errors import UserError
from ..data.datasets import SKIPPED


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    loader: Iterable,
    device: torch.device,
    *,
    autocast: Callable[[], AbstractContextManager],
    on_batch: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    channels_last: bool = False,
) -> dict[str, float]:
    """Evaluate a model.

    Args:
        model: Module from (b, c, h, w) float images to (b, classes) logits; left in evaluation mode.
        loader: Batches of images and class indices on the device; the shares of all processes are summed.
        device: Where the batches are.
        autocast: Context of the forward pass.
        on_batch: Called with logits and labels of every batch; what it raises ends the evaluation.
        channels_last: Give the model channels-last images.

    Returns:
        `{"loss": mean cross-entropy, "top1": percent, "top5": percent}`.

    Raises:
        UserError: No image could be read, or a label is not a class of the model.
    """
    model.eval()
    # what a sharded model gathers here is used by the next training step, and tensors of inference could not be
    sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    with nullcontext() if sharded else torch.inference_mode():
        return _evaluate(model, loader, device, autocast, on_batch, channels_last)


def _evaluate(
    model: torch.nn.Module,
    loader: Iterable,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    on_batch: Callable[[torch.Tensor, torch.Tensor], None] | None,
    channels_last: bool,
) -> dict[str, float]:
    evaluator = ClassificationEvaluator(device=device)
    for images, labels in loader:
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast():
            logits = model(images)
        kept = labels != SKIPPED
        foreign = labels[kept & ((labels < 0) | (labels >= logits.shape[-1]))]
        if foreign.numel():
            raise UserError(
                f"the data holds class index {int(foreign[0])} but the model has {logits.shape[-1]} "
                "classes, 0 to n - 1; give the right --num-classes or --class-map"
                + (", or a split that has labels" if int(foreign[0]) < 0 else "")
            )
        evaluator.update(logits[kept], labels[kept])
        if on_batch is not None:
            on_batch(logits, labels)
    distributed = dist.is_initialized()
    count = evaluator.counts[:1].clone()
    if distributed:
        dist.all_reduce(count)
    if not count.item():
        raise UserError("the evaluation has no readable image")
    return dict(evaluator.compute(distributed=distributed))


class Mistakes:
    """Keeps the images that a model is wrong about and surest of, by their numbers in the evaluation's order.

    Args:
        most: How many are kept.

    Attributes:
        count: All mistakes.
    """

    def __init__(self, most: int = 30):
        self.most = most
        self.count = self.seen = 0
        self._kept: list[tuple[float, int, int, int]] = []

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Look at a batch: logits (b, classes), labels (b,); what was skipped is left out."""
        confidence, prediction = (value.cpu() for value in logits.float().softmax(-1).max(-1))
        labels = labels.cpu()
        wrong = ((prediction != labels) & (labels != SKIPPED)).nonzero().flatten().tolist()
        self.count += len(wrong)
        self._kept += [(confidence[i].item(), self.seen + i, int(prediction[i]), int(labels[i])) for i in wrong]
        self._kept = heapq.nlargest(self.most, self._kept)
        self.seen += len(labels)

    def surest(self) -> list[tuple[float, int, int, int]]:
        """Return confidence, number of the image, class it is taken for and true class, surest first."""
        return self._kept


class Tally:
    """Counts which class is taken for which, and how sure the model is when it is right.

    Args:
        num_classes: Classes of the model.
        bins: Bins of confidence, of equal width.

    Attributes:
        confusion: Images (classes, classes), by truth and prediction.
    """

    def __init__(self, num_classes: int, bins: int = 15):
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)
        self.bins = torch.zeros(3, bins, dtype=torch.float64)  # images, right ones, sum of confidences

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: logits (b, classes), labels (b,); what was skipped is left out."""
        kept = labels != SKIPPED
        confidence, prediction = (value.cpu() for value in logits[kept].double().softmax(-1).max(-1))
        truth = labels[kept].cpu()
        total = len(self.confusion)
        self.confusion += torch.bincount(truth * total + prediction, minlength=total**2).view(total, total)
        count = self.bins.shape[1]
        place = (confidence * count).ceil().long().clamp(1, count) - 1
        for row, values in enumerate((torch.ones_like(confidence), (prediction == truth).double(), confidence)):
            self.bins[row] += torch.bincount(place, values, minlength=count)

    def calibration_error(self) -> float:
        """Return the expected calibration error in percent (Guo et al., arXiv:1706.04599, section 2)."""
        return 100 * ((self.bins[1] - self.bins[2]).abs().sum() / self.bins[0].sum().clamp(min=1)).item()

    def mean_class_accuracy(self) -> float:
        """Return top-1 in percent, averaged over the classes that have images."""
        images = self.confusion.sum(1)
        present = images > 0
        return 100 * (self.confusion.diag()[present] / images[present]).double().mean().item() if present.any() else 0.0

    def rows(self, names: list[str] | None) -> list[dict[str, Any]]:
        """Return a row per class: its images, how many of them are right, and of those taken for it how many are."""
        right, images, taken = self.confusion.diag(), self.confusion.sum(1), self.confusion.sum(0)
        return [
            {
                "class": name,
                "images": int(images[i]),
                "top1": round(100 * int(right[i]) / int(images[i]), 3) if images[i] else None,
                "precision": round(100 * int(right[i]) / int(taken[i]), 3) if taken[i] else None,
            }
            for i, name in enumerate(self._names(names))
        ]

    def confusion_rows(self, names: list[str] | None) -> list[dict[str, Any]]:
        """Return a row per true class with the images that were taken for each."""
        known = self._names(names)
        counts = self.confusion.tolist()
        return [
            {"truth": name} | dict(zip((f"as {other}" for other in known), row, strict=True))
            for name, row in zip(known, counts, strict=True)
        ]

    def reliability_rows(self) -> list[dict[str, Any]]:
        """Return a row per bin of confidence that has images: its bounds, images, mean confidence and accuracy."""
        images, right, confidence = self.bins.tolist()
        count = len(images)
        return [
            {
                "from": round(100 * i / count, 3),
                "to": round(100 * (i + 1) / count, 3),
                "images": int(images[i]),
                "confidence": round(100 * confidence[i] / images[i], 3),
                "accuracy": round(100 * right[i] / images[i], 3),
            }
            for i in range(count)
            if images[i]
        ]

    def _names(self, names: list[str] | None) -> list[str]:
        known = list(names or [])[: len(self.confusion)]
        return known + [str(index) for index in range(len(known), len(self.confusion))]
