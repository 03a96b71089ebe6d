"""What all segmentation models share: any input size, early errors, and the reading of the authors' files."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import unwrap
from ..errors import CheckpointError
from ..models._builder import VisionModel


class SegmentationModel(VisionModel):
    """Base of the segmentation models: images to logits of their size.

    Args:
        in_chans: Channels of the images.
        num_classes: Channels of the logits.
        size_multiple: What every side must be a multiple of, one number or one for each axis.
        pad: Pad the images with zeros, at the far sides, to such sizes and crop the logits; else other sizes are
            refused.
        spatial_dims: 2 for images, 3 for volumes.

    Attributes:
        prefix: Pattern of what stands before all names of published files.
        aliases: Pairs of pattern and replacement for second names of one tensor in published files.
        classifier: Name of the layer that makes the logits; several for several outputs.
        min_cells: Cells that the coarsest map must have.
        gray: One-channel images are repeated to three channels.
    """

    prefix: ClassVar[str] = r"^$"
    aliases: ClassVar[tuple[tuple[str, str], ...]] = ()
    classifier: str | tuple[str, ...]
    min_cells: ClassVar[int] = 1
    gray: ClassVar[bool] = False

    def __init__(
        self,
        in_chans: int,
        num_classes: int,
        size_multiple: int | Sequence[int],
        pad: bool = True,
        spatial_dims: int = 2,
    ):
        super().__init__()
        if num_classes < 1 or in_chans < 1:
            raise ValueError(
                f"num_classes and in_chans must be at least 1, got num_classes={num_classes} and in_chans={in_chans}"
            )
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        multiples = (size_multiple,) * spatial_dims if isinstance(size_multiple, int) else tuple(size_multiple)
        self.size_multiple = multiples
        self.pad = pad
        self.spatial_dims = spatial_dims

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images (b, c, h, w), or volumes (b, c, d, h, w), to logits (b, num_classes, ...) of the same size.

        Raises:
            ValueError: another number of axes or channels, or a size that the model cannot take.
        """
        x = self.prepare(x)
        size = tuple(x.shape[2:])
        missing = [-side % multiple for side, multiple in zip(size, self.size_multiple, strict=True)]
        cells = math.prod(
            (side + more) // multiple for side, more, multiple in zip(size, missing, self.size_multiple, strict=True)
        )
        if cells < self.min_cells:
            raise ValueError(
                f"{type(self).__name__} divides the sides by {self.size_multiple} and norms what is left over its "
                f"pixels, so that at least {self.min_cells} must be left; got an image of {size}: take a larger one, "
                "or fewer stages"
            )
        if not any(missing):
            return self.forward_logits(x)
        if not self.pad:
            raise ValueError(
                f"sides must be multiples of {self.size_multiple}, got {size}; pad=True pads and crops inside"
            )
        x = F.pad(x, [amount for more in reversed(missing) for amount in (0, more)])
        y = self.forward_logits(x)
        if isinstance(y, Tensor):
            return _crop(y, size)
        return _crop(y[0], size), *y[1:]

    def forward_logits(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The model itself, for sides that are multiples of `size_multiple`."""
        raise NotImplementedError

    def prepare(self, x: Tensor) -> Tensor:
        """Check the images, and give gray ones three channels where the model is published so."""
        if x.ndim != self.spatial_dims + 2 or not x.is_floating_point():
            shape = "(b, c, h, w)" if self.spatial_dims == 2 else "(b, c, d, h, w)"
            raise ValueError(
                f"{type(self).__name__} reads floating-point images {shape}, got {tuple(x.shape)} of {x.dtype}"
            )
        if self.gray and self.in_chans in (1, 3) and x.shape[1] == 1:
            return x.expand(-1, 3, -1, -1)
        if x.shape[1] != self.in_chans:
            raise ValueError(
                f"{type(self).__name__} was built for {self.in_chans} channels, got images of {x.shape[1]}; "
                "set in_chans"
            )
        return x

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer."""
        name = self.classifier if isinstance(self.classifier, str) else self.classifier[0]
        return self.get_submodule(name)

    @staticmethod
    def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: "SegmentationModel") -> dict[str, Tensor]:
        """Convert a checkpoint, published or our own and of any nesting, to the names and shapes of a model.

        Raises:
            CheckpointError: the weights do not fill the model exactly, two names of one tensor disagree, or the
                weights are of a kind that the layout refuses.
        """
        source: dict[str, Any] = {}
        first: dict[str, str] = {}
        for name, value in unwrap(state_dict).items():
            main = re.sub(model.prefix, "", name)
            for pattern, new in model.aliases:
                main = re.sub(pattern, new, main)
            if main in source and source[main] is not value and not _equal(source[main], value):
                raise CheckpointError(f"{first[main]} and {name} are two names of one tensor, but their values differ")
            first.setdefault(main, name)
            source.setdefault(main, value)
        return VisionModel.checkpoint_filter_fn(source, model)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))


def _crop(y: Tensor, size: tuple[int, ...]) -> Tensor:
    for axis, side in enumerate(size, start=2):
        y = y.narrow(axis, 0, side)
    return y


# names of one route of Mamba in published files
MAMBA_NAMES = (
    (r"\.conv1d\.(weight|bias)$", r".conv_\1"),
    (r"\.x_proj\.weight$", ".ssm.x_proj_weight"),
    (r"\.dt_proj\.(weight|bias)$", r".ssm.dt_\1"),
    (r"\.(mamba|mixer)\.(A_log|D)$", r".\1.ssm.\2"),
)
