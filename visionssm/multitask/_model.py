"""Whole multi-task networks: a backbone of timm, and the decoder over its maps."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models  # noqa: F401  registers the models with timm
from .._registry import Registry
from ..checkpoints import check_state_dict, unwrap
from ..errors import CheckpointError
from .mtmamba import MTMambaDecoder

registry = Registry["MTMamba"]("multi-task")


@registry.register("mtmamba", version=1)
@registry.register("mtmamba_plus", version=2)
class MTMamba(nn.Module):
    """MTMamba (arXiv:2407.02228) or MTMamba++ (arXiv:2408.15101) over any backbone of timm, for any image size.

    Args:
        tasks: Output channels by task, as of `MTMambaDecoder`.
        backbone: Name of a timm model whose maps halve from one to the next.
        backbone_weights: Start the backbone from its classifier's weights: a file, or True to download them.
        backbone_args: Further arguments of the backbone, for example `out_indices`.
        in_chans: Channels of the images.
        version: 1 for MTMamba, 2 for MTMamba++.
        d_state: States per channel of the scans.
        scan: Name of the decoder's scan order.
        drop_path_rate: Stochastic depth of the decoder's first block; falls linearly to 0.

    Attributes:
        projections: Convolutions that bring maps to widths that double, from the first map's on; nothing where the
            backbone's do.

    Raises:
        CheckpointError: the backbone's file does not fit.
        ValueError: the backbone's maps do not halve, or an argument is out of its range.
    """

    def __init__(
        self,
        tasks: Mapping[str, int],
        backbone: str = "vmamba_tiny_s1l8",
        backbone_weights: bool | str = False,
        backbone_args: Mapping[str, Any] | None = None,
        in_chans: int = 3,
        version: int = 1,
        d_state: int = 16,
        scan: str = "cross",
        drop_path_rate: float = 0.2,
    ):
        super().__init__()
        args: dict[str, Any] = dict(backbone_args or {})
        if isinstance(backbone_weights, str):
            args["pretrained_cfg_overlay"] = {"file": backbone_weights}
        try:
            self.backbone = timm.create_model(
                backbone, pretrained=bool(backbone_weights), features_only=True, in_chans=in_chans, **args
            )
        except RuntimeError as error:
            if isinstance(error, CheckpointError):
                raise
            raise ValueError(f"backbone {backbone!r} cannot be built: {error}") from error
        reductions, channels = self.backbone.feature_info.reduction(), self.backbone.feature_info.channels()
        if len(reductions) < 2 or any(b != 2 * a for a, b in zip(reductions, reductions[1:], strict=False)):
            raise ValueError(
                f"the decoder reads maps that halve from one to the next; {backbone} gives maps of strides "
                f"{tuple(reductions)}: choose by backbone_args=dict(out_indices=...)"
            )
        widths = [channels[0] * 2**level for level in range(len(channels))]
        self.projections = nn.ModuleList(
            nn.Identity() if given == wanted else nn.Conv2d(given, wanted, 1)
            for given, wanted in zip(channels, widths, strict=True)
        )
        self.decoder = MTMambaDecoder(widths, tasks, version, d_state, scan, drop_path_rate)
        self.in_chans = in_chans
        self.size_multiple = reductions[-1]
        self.tasks = self.decoder.tasks
        self.channels_last = str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (b, c, h, w) to outputs (b, channels of the task, h, w) by task: logits, or raw values.

        Other sizes than multiples of `size_multiple` are padded with zeros at the far sides, and outputs cropped.

        Raises:
            ValueError: another number of axes or channels.
        """
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(f"MTMamba reads floating-point images (b, c, h, w), got {tuple(x.shape)} of {x.dtype}")
        if x.shape[1] != self.in_chans:
            raise ValueError(
                f"MTMamba was built for {self.in_chans} channels, got images of {x.shape[1]}; set in_chans"
            )
        height, width = x.shape[2:]
        down, right = -height % self.size_multiple, -width % self.size_multiple
        if down or right:
            x = F.pad(x, (0, right, 0, down))
        maps: Sequence[Tensor] = self.backbone(x)
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        maps = [project(m) for project, m in zip(self.projections, maps, strict=True)]
        outputs = self.decoder(maps, size=tuple(x.shape[2:]))
        return {task: y[:, :, :height, :width] for task, y in outputs.items()}

    @staticmethod
    def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: "MTMamba") -> dict[str, Tensor]:
        """Check that weights are those of a whole network of ours.

        Raises:
            CheckpointError: they do not fill the model exactly, or are the authors', whose backbone is not timm's.
        """
        source = unwrap(state_dict)
        if any(re.match(r"(expand_layers|final_expand)\.", name) for name in source):
            raise CheckpointError(
                "it is a file of MTMamba's authors, whose backbone is that of mmseg; fill the decoder alone from it: "
                "visionssm.checkpoints.load(visionssm.checkpoints.read(FILE), model.decoder)"
            )
        check_state_dict(source, model, source)
        return source
