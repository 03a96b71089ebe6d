"""Loss, top-1 and top-5 over a loader."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from timm.task import ClassificationEvaluator
from torch import distributed as dist

from ...errors import UserError
from ..data.datasets import SKIPPED


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module,
    loader: Iterable,
    device: torch.device,
    *,
    autocast: Callable[[], AbstractContextManager],
    on_batch: Callable[[torch.Tensor], None] | None = None,
    channels_last: bool = False,
) -> dict[str, float]:
    """Evaluate a model.

    Args:
        model: Module from (b, c, h, w) float images to (b, classes) logits; left in evaluation mode.
        loader: Batches of images and class indices on the device; the shares of all processes are summed.
        device: Where the batches are.
        autocast: Context of the forward pass.
        on_batch: Called with the logits of every batch; what it raises ends the evaluation.
        channels_last: Give the model channels-last images.

    Returns:
        `{"loss": mean cross-entropy, "top1": percent, "top5": percent}`.

    Raises:
        UserError: No image could be read, or a label is not a class of the model.
    """
    model.eval()
    evaluator = ClassificationEvaluator(device=device)
    for images, labels in loader:
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast():
            logits = model(images)
        kept = labels != SKIPPED
        if labels.numel() and (labels.max() >= logits.shape[-1] or (labels[kept] < 0).any()):
            raise UserError(
                f"the data holds class index {int(labels.max())} but the model has {logits.shape[-1]} "
                "classes, 0 to n - 1; give the right --num-classes or --class-map"
            )
        evaluator.update(logits[kept], labels[kept])
        if on_batch is not None:
            on_batch(logits)
    distributed = dist.is_initialized()
    count = evaluator.counts[:1].clone()
    if distributed:
        dist.all_reduce(count)
    if not count.item():
        raise UserError("the evaluation has no readable image")
    return dict(evaluator.compute(distributed=distributed))
