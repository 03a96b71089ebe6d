"""Effective receptive field: how much each pixel of the image moves the centre of the last feature map.

Source: Luo et al., arXiv:1701.04128; measured as VMamba does (arXiv:2401.10166, figure of receptive fields).
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

_logger = logging.getLogger(__name__)


def receptive_field(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    index: int = -1,
    position: tuple[int, int] | None = None,
) -> Tensor:
    """Mean over images of the positive gradient of one position of a feature map with respect to the pixels.

    The position's channels count where they are positive, and so do the entries of the gradient: nothing cancels. The
    features of a hierarchical model are a stage's output, those of a plain model pass the final norm.

    Args:
        model: A model with `forward_intermediates`; it is put in evaluation mode for the time of the call.
        images: (b, c, h, w), or several such of one size.
        index: Feature level, as in timm.
        position: Row and column in the feature map; the centre, (rows // 2, columns // 2), if None.

    Returns:
        (h, w), float32, on the CPU.

    Raises:
        ValueError: there is no image, or the position is outside the map.
        RuntimeError: every image gave a NaN.
    """
    total, count, lost = None, 0, 0
    with _frozen(model):
        for batch in [images] if isinstance(images, Tensor) else images:
            for image in batch.split(1):
                one = _map_of(model, image, index, position)
                if torch.isnan(one).any():
                    lost += 1
                    continue
                total = one if total is None else total + one
                count += 1
    if lost:
        _logger.warning("%d of %d images gave a NaN and were left out", lost, lost + count)
    if total is None:
        if lost:
            raise RuntimeError(f"all {lost} images gave a NaN")
        raise ValueError("found no image")
    return (total / count).float().cpu()


def _map_of(model: nn.Module, image: Tensor, index: int, position: tuple[int, int] | None) -> Tensor:
    image = image.detach().requires_grad_()
    plain = getattr(model, "output_fmt", "") == "NLC"
    kwargs = {"norm": True} if plain else {}
    features = cast(Any, model).forward_intermediates(image, indices=[index], intermediates_only=True, **kwargs)[0]
    height, width = features.shape[2:]
    row, column = (height // 2, width // 2) if position is None else position
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"position {(row, column)} is outside the feature map of {height} x {width}")
    (gradient,) = torch.autograd.grad(features[:, :, row, column].clamp(min=0).sum(), image)
    return gradient.clamp(min=0).sum((0, 1))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients of parameters."""
    training = model.training
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def _check_whole(model: nn.Module) -> None:
    """Refuse a model that leaves tokens out on its way.

    Raises:
        ValueError: it does.
    """
    if pruning := getattr(model, "pruning", None):
        raise ValueError(
            f"this {type(model).__name__} leaves out tokens after blocks {', '.join(map(str, pruning))}, whose "
            "part is not defined then: build it without pruning, which takes the same weights"
        )


def normalise(field: Tensor) -> Tensor:
    """A field (h, w) for a picture: its fifth root over its maximum; zeros stay zeros."""
    root = field.clamp(min=0) ** 0.2
    return root / root.max() if root.max() > 0 else root


def central_square(field: Tensor, share: float) -> tuple[int, float] | None:
    """The smallest central square that holds more than a share of a field (h, w).

    Args:
        field: A receptive field, not normalised.
        share: Between 0 and 1.

    Returns:
        Side of the square in pixels and its area over that of the image; None where no square holds as much.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    height, width = field.shape
    row, column, total = height // 2, width // 2, field.sum()
    for reach in range(1, min(height, width) // 2):
        square = field[row - reach : row + reach + 1, column - reach : column + reach + 1]
        if square.sum() / total > share:
            side = 2 * reach + 1
            return side, side * side / (height * width)
    return None
