"""Masked image modelling with any backbone that can leave hidden cells out (MambaMIM in 2D, arXiv:2408.08070)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.map_conv import MapConv2d
from ..models._hierarchical import HierarchicalModel
from ..models._plain import PlainModel
from .interpolation import TokenInterpolation
from .masking import random_mask, reconstruction_loss

__all__ = ["FILLS", "MaskedImageModel"]

FILLS = ("toki", "token")


class MaskedImageModel(nn.Module):
    """A backbone that sees some cells of an image, and a light decoder that regresses the hidden ones.

    A hierarchical backbone sees maps whose hidden cells are 0 at every stage: the mask is repeated to each resolution
    and multiplied to what stem, downsampling, blocks, norms and convolutions give. A plain one is given the visible
    tokens alone, and its scans decay over those between them. Hidden cells of the deepest map are interpolated along
    the sequence of its cells (`TokenInterpolation`), those of other maps are one learned token each; convolutions and
    upsampling lead to the image. The loss counts hidden cells alone, each normalised (`reconstruction_loss`).

    Args:
        backbone: A model of this package without classifier.
        mask_ratio: Share of the cells that is hidden.
        cell: Side of a cell, a multiple of the backbone's largest stride, which it is by default.
        fill: "toki" interpolates hidden tokens; "token" puts one learned token.
        decoder_width: Channels of the decoder at the deepest map; halved from map to map.
        gaps: A plain backbone's scans decay over hidden tokens; else they were never there, as in the paper.

    Raises:
        ValueError: the backbone mixes cells in ways that masks cannot follow, or an argument is out of its range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mask_ratio: float = 0.75,
        cell: int | None = None,
        fill: str = "toki",
        decoder_width: int = 256,
        gaps: bool = True,
    ):
        super().__init__()
        self.plain = isinstance(backbone, PlainModel)
        check_backbone(backbone)
        if fill not in FILLS:
            raise ValueError(f"fill must be one of {', '.join(map(repr, FILLS))}, got {fill!r}")
        if not 0.0 <= mask_ratio < 1.0:
            raise ValueError(f"the share of hidden cells must be from 0 to below 1, got {mask_ratio}")
        levels = backbone.feature_info[-1:] if self.plain else backbone.feature_info
        self.strides = [level["reduction"] for level in levels]
        self.cell = cell or self.strides[-1]
        if self.cell % self.strides[-1]:
            raise ValueError(
                f"the cell must be a multiple of the backbone's stride {self.strides[-1]}, got {self.cell}"
            )
        widths = [decoder_width // 2 ** (len(levels) - 1 - i) for i in range(len(levels))]
        if widths[0] < 1:
            raise ValueError(f"decoder_width must be at least {2 ** (len(levels) - 1)}, got {decoder_width}")
        self.backbone = backbone
        self.mask_ratio = mask_ratio
        self.gaps = gaps
        dims = [level["num_chs"] for level in levels]
        self.fill = TokenInterpolation(dims[-1]) if fill == "toki" else None
        shallow = dims[:-1] if fill == "toki" else dims
        self.mask_tokens = nn.ParameterList(nn.init.trunc_normal_(torch.empty(dim), std=0.02) for dim in shallow)
        last = len(dims) - 1
        self.densify = nn.ModuleList(
            nn.Conv2d(dim, width, 1 if i == last else 3, padding=0 if i == last else 1)
            for i, (dim, width) in enumerate(zip(dims, widths, strict=True))
        )
        self.deepest = _refine(widths[-1], widths[-1])
        steps = [after // before for before, after in zip(self.strides, self.strides[1:], strict=False)]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(widths[i + 1], widths[i], step, stride=step) for i, step in enumerate(steps)
        )
        self.fuses = nn.ModuleList(_refine(2 * width, width) for width in widths[:-1])
        self.to_pixels = nn.Sequential(
            nn.Conv2d(widths[0], backbone.in_chans * self.strides[0] ** 2, 1), nn.PixelShuffle(self.strides[0])
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay spares: the backbone's, and the learned tokens."""
        own = {name for name, _ in self.named_parameters() if "mask_token" in name}
        return own | {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the cells of images (b, c, h, w).

        Raises:
            ValueError: a side is no multiple of the cell.
        """
        height, width = images.shape[2:]
        if height % self.cell or width % self.cell:
            raise ValueError(f"sides of images must be multiples of the cell {self.cell}, got {height} x {width}")
        return height // self.cell, width // self.cell

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw which cells of images (b, c, h, w) are visible: bool (b, rows, columns).

        Raises:
            ValueError: sides are no multiples of the cell, or nothing would be visible.
        """
        rows, columns = self.grid(images)
        device = images.device if generator is None else generator.device
        visible = random_mask(len(images), rows * columns, self.mask_ratio, generator, device)
        return visible.view(-1, rows, columns).to(images.device)

    def encode(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        """The backbone's maps (b, c, h, w), 0 at hidden cells; of a plain one the last alone.

        Args:
            images: (b, c, h, w).
            visible: Which cells it is shown, bool (b, rows, columns); as many in each image for a plain backbone.
        """
        images = images * _repeat(visible, images.shape[2:]).unsqueeze(1)
        if not self.plain:
            with _masked(self.backbone, visible):
                return self.backbone.forward_intermediates(images, norm=True, intermediates_only=True)
        model = self.backbone
        x, grid = model.embed(images)
        shown = _repeat(visible, grid[:2]).flatten(1)
        everywhere = torch.ones_like(x[:, :, 0], dtype=torch.bool)
        patches = ~model.is_extra(x, grid)
        everywhere = everywhere.masked_scatter(patches, shown)
        count = int(everywhere[0].sum())
        kept = everywhere.long().argsort(dim=1, descending=True, stable=True)[:, :count]
        x, grid = model.leave_out(x, kept, grid)
        grid = grid._replace(align=self.gaps)
        for i in range(len(model.blocks)):
            x = model.run_block(i, x, grid)
        x = model.finish(x)
        if grid.kept is not None:
            x = x.new_zeros(*everywhere.shape, x.shape[-1]).scatter(1, kept.unsqueeze(-1).expand_as(x), x)
        patches, _ = model.split_tokens(x)
        return [patches.unflatten(1, grid[:2]).permute(0, 3, 1, 2)]

    def decode(self, maps: Sequence[Tensor], visible: Tensor) -> Tensor:
        """Images (b, c, h, w) from the maps of `encode`."""
        filled = []
        for i, x in enumerate(maps):
            shown = _repeat(visible, x.shape[2:]).unsqueeze(1)
            if self.fill is not None and i == len(maps) - 1:
                tokens = self.fill(x.flatten(2).transpose(1, 2).float(), shown.flatten(1))
                filled.append(tokens.transpose(1, 2).unflatten(2, x.shape[2:]).to(x.dtype))
            else:
                filled.append(torch.where(shown, x, self.mask_tokens[i].view(-1, 1, 1).to(x.dtype)))
        x = self.deepest(self.densify[-1](filled[-1]))
        for i in reversed(range(len(self.ups))):
            x = self.fuses[i](torch.cat([self.ups[i](x), self.densify[i](filled[i])], 1))
        return self.to_pixels(x)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Hide cells, and measure how they are found again.

        Args:
            images: Normalised (b, c, h, w).
            visible: Which cells are shown, bool (b, rows, columns); drawn if None.

        Returns:
            The loss, the reconstruction (b, c, h, w), and `visible`.

        Raises:
            ValueError: sides are no multiples of the cell, or nothing would be visible.
        """
        visible = self.draw(images) if visible is None else visible
        found = self.decode(self.encode(images, visible), visible).float()
        return reconstruction_loss(found, images.float(), visible.flatten(1), self.cell), found, visible


def check_backbone(backbone: nn.Module) -> None:
    """Check that masks can follow what a backbone does.

    Raises:
        ValueError: they cannot; the message says why.
    """
    name = type(backbone).__name__
    if not isinstance(backbone, PlainModel | HierarchicalModel):
        raise ValueError(f"{name} is no backbone of this package that masked image modelling knows")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules()):
        raise ValueError(f"{name} has batch norms, whose statistics hidden cells would spoil; take a family without")
    if getattr(backbone, "removed", ()):
        raise ValueError(f"{name} lacks {', '.join(backbone.removed)}; pre-train the whole model")
    if isinstance(backbone, PlainModel):
        if not backbone.prunes_tokens:
            raise ValueError(f"{name} cannot be given the visible tokens alone: its mixers read whole maps")
        if backbone.pruning:
            raise ValueError("pruning and masked image modelling both leave out tokens; leave out pruning")
        backbone.check_complete_scan()


def _refine(dim: int, dim_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(2):
        layers += [
            nn.Conv2d(dim_out if i else dim, dim_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def _repeat(visible: Tensor, size: Sequence[int]) -> Tensor:
    """A mask of cells (b, rows, columns) at a resolution that is a multiple of it: (b, height, width)."""
    rows, columns = visible.shape[1:]
    return visible.repeat_interleave(size[0] // rows, 1).repeat_interleave(size[1] // columns, 2)


@contextmanager
def _masked(backbone: nn.Module, visible: Tensor) -> Iterator[None]:
    """Within it, hidden cells are 0 in what stem, downsampling, blocks, norms and convolutions of the backbone give."""
    handles = []

    def hook(channels_first: bool) -> Any:
        def mask(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            if not isinstance(out, Tensor) or out.ndim != 4 or len(out) != len(visible):
                return out  # tokens, or windows
            size = out.shape[2:] if channels_first else out.shape[1:3]
            if size[0] % visible.shape[1] or size[1] % visible.shape[2]:
                return out
            shown = _repeat(visible, size)
            return out * (shown.unsqueeze(1) if channels_first else shown.unsqueeze(-1))

        return mask

    own = backbone.output_fmt == "NCHW"
    parts = {id(backbone.stem), *(id(part) for stage in backbone.stages for part in (stage, stage.downsample))}
    parts |= {id(block) for stage in backbone.stages for block in stage.blocks}
    try:
        for module in backbone.modules():
            if id(module) in parts:
                handles.append(module.register_forward_hook(hook(own)))
            elif isinstance(module, nn.Conv2d):
                handles.append(module.register_forward_hook(hook(not isinstance(module, MapConv2d))))
            elif "norm" in type(module).__name__.lower():
                handles.append(module.register_forward_hook(hook("2d" in type(module).__name__.lower())))
        yield
    finally:
        for handle in handles:
            handle.remove()
