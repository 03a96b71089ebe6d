"""VM-UNet: a U-shaped network of VMamba's blocks of the first generation; with multi-head scans it is MHS-VM's.

Papers: VM-UNet: Vision Mamba UNet for Medical Image Segmentation, https://arxiv.org/abs/2402.02491; MHS-VM: Multi-Head
Scanning in Parallel Subspaces for Vision Mamba, https://arxiv.org/abs/2406.05992
Original code: https://github.com/JCruan519/VM-UNet and https://github.com/PixDeep/MHS-VM (both Apache-2.0)
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import timm
import torch
from timm.layers import LayerNorm, calculate_drop_path_rates
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ..checkpoints import Layout, Refusal, read
from ..errors import CheckpointError
from ..layers import SS2D, PatchExpand, PatchMerging, PatchStem, ResidualBlock, Stage
from ..models.mhsvm import HEAD_SCANS, GatedMultiHeadScan
from ..models.vmamba import VMamba
from ..scans import check_scan
from ._base import SegmentationModel
from ._registry import register

__all__ = ["VMUNet", "VMUNetDecoder"]

_CLASSIFIER = "vanilla_vmamba_small"  # whose weights the original starts from
_norm = partial(LayerNorm, eps=1e-5)
_logger = logging.getLogger(__name__)


class EncoderStage(Stage):
    """A stage that also returns what its blocks read."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A map (b, h, w, c) to the blocks' input and output, (b, h', w', c')."""
        first = self.downsample(x)
        return first, checkpoint_seq(self.blocks, first) if self.grad_checkpointing else self.blocks(first)


class VMUNetEncoder(nn.Module):
    """Stem and stages; names as in a VMamba classifier."""

    def __init__(self, in_chans: int, dims: Sequence[int], depths: Sequence[int], rate: float, block: Callable):
        super().__init__()
        self.stem = PatchStem(in_chans, dims[0], norm_layer=_norm)
        rates = calculate_drop_path_rates(rate, list(depths), stagewise=True)
        self.stages = nn.ModuleList(
            EncoderStage(
                PatchMerging(dims[i - 1], dim, _norm) if i else nn.Identity(),
                [block(dim, drop_path) for drop_path in rates[i]],
            )
            for i, dim in enumerate(dims)
        )

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Images to the inputs of the stages' blocks, finest first, and the last stage's output; all (b, c, h, w)."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            first, x = stage(x)
            maps.append(first.permute(0, 3, 1, 2))
        return maps, x.permute(0, 3, 1, 2)


class ExpandStage(nn.Module):
    """Add a skip and double the size, except in the coarsest stage; then blocks."""

    def __init__(self, expand: nn.Module | None, blocks: Sequence[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.expand = expand
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """A map (b, h, w, c), and one to add to it, to (b, 2 h, 2 w, c / 2)."""
        if self.expand is not None:
            x = self.expand(x if skip is None else x + skip)
        return checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)


class VMUNetDecoder(nn.Module):
    """The decoder of VM-UNet: blocks, added skips, patch expansion.

    Args:
        channels: Channels of the maps, finest first, each twice the one before.
        num_classes: Channels of the logits.
        depths: Blocks of each stage, coarsest first.
        block: block(dim, drop_path) makes a block; VM-UNet's if None.
        drop_path_rate: Stochastic depth of the first block; falls linearly to 0.
        scale: Pixels of the image along a side of the finest map's pixels.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        depths: Sequence[int] = (2, 2, 2, 1),
        block: Callable[[int, float], nn.Module] | None = None,
        drop_path_rate: float = 0.2,
        scale: int = 4,
    ):
        super().__init__()
        channels, block = list(channels), block or _block_maker("ss2d", 16, 4, 0.5, "cross")
        if any(coarse != 2 * fine for fine, coarse in zip(channels, channels[1:], strict=False)):
            raise ValueError(f"channels must double from map to map, as the decoder adds skips; got {channels}")
        if len(depths) != len(channels):
            raise ValueError(f"depths must be of one length with channels, got {len(depths)} and {len(channels)}")
        if channels[0] % scale:
            raise ValueError(f"channels of the finest map must be a multiple of {scale}, got {channels[0]}")
        rates = torch.linspace(drop_path_rate, 0, sum(depths), device="cpu").split(list(depths))
        self.stages = nn.ModuleList(
            ExpandStage(
                PatchExpand(2 * dim, dim, norm_layer=_norm) if j else None,
                [block(dim, drop_path) for drop_path in rates[j].tolist()],
            )
            for j, dim in enumerate(reversed(channels))
        )
        self.expand = PatchExpand(channels[0], channels[0] // scale, scale, _norm)
        self.head = nn.Conv2d(channels[0] // scale, num_classes, 1)

    def forward(self, maps: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        """Decode.

        Args:
            maps: (b, channels[i], h_i, w_i), finest first, halving; the finest is not read, as in the original. There
                they are the inputs of the encoder's stages.
            x: What the decoder starts from, of the coarsest map's shape: the last stage's output there. The coarsest
                map itself if None.

        Returns:
            Logits (b, num_classes, scale h_0, scale w_0).
        """
        y = (maps[-1] if x is None else x).permute(0, 2, 3, 1)
        y = self.stages[0](y)
        for stage, skip in zip(list(self.stages)[1:], reversed(maps[1:]), strict=True):
            y = stage(y, skip.permute(0, 2, 3, 1))
        return self.head(self.expand(y).permute(0, 3, 1, 2))


def _block_maker(
    mixer: str, d_state: int, heads: int, threshold: float, scan: str
) -> Callable[[int, float], nn.Module]:
    """What makes a block of a width and a rate of stochastic depth."""
    check_scan(scan)
    if mixer not in ("ss2d", "mhs"):
        raise ValueError(f"mixer must be 'ss2d' or 'mhs', got {mixer!r}")
    if not 1 <= heads <= len(HEAD_SCANS):
        raise ValueError(f"heads must be from 1 to {len(HEAD_SCANS)}, got {heads}")

    def block(dim: int, drop_path: float) -> ResidualBlock:
        if mixer == "mhs":
            inner: nn.Module = GatedMultiHeadScan(dim, list(HEAD_SCANS.values())[:heads], d_state, threshold)
        else:
            rank = math.ceil(dim / 16)
            inner = SS2D(dim, 2 * dim, d_state, rank, scan, gated=True, conv_bias=True, norm_layer=_norm)
        return ResidualBlock(_norm(dim), inner, drop_path=drop_path)

    return block


def _decoder_name(match: re.Match) -> str:
    stage, _, rest = match[1].partition(".")
    if rest.startswith("upsample."):
        return f"decoder.stages.{stage}.expand.{rest.removeprefix('upsample.')}"
    return f"decoder.{VMamba.layout.rename('layers.' + match[1])}"


@register("vm_unet")
@register("mhsvm_unet", mixer="mhs")
@register("test_vm_unet", dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), depths_decoder=(1, 1, 1, 1))
@register("test_mhsvm_unet", mixer="mhs", dims=(16, 32, 64, 128), depths=(1,) * 4, depths_decoder=(1,) * 4)
class VMUNet(SegmentationModel):
    """VM-UNet (arXiv:2402.02491).

    The skips are the inputs of the encoder's stages and are added; the finest is not used.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the images; those of one are repeated to three, as the pretrained stem has three.
        dims: Channels of each stage, doubling.
        depths: Blocks of each stage of the encoder.
        depths_decoder: The same of the decoder, coarsest first.
        mixer: "ss2d" (VM-UNet), or "mhs" for multi-head scans (MHS-VM).
        d_state: States per channel of the scan.
        heads: Heads of the multi-head scans; published are 3 and 4.
        threshold: Variation of routes below which "mhs" drops a token; published files were trained with 0.5 or 0 and
            tested with 0.4.
        scan: Name of the scan order of "ss2d".
        drop_path_rate: Stochastic depth of the last block of the encoder and the first of the decoder.
        encoder_weights: Start from a classifier of VMamba's first generation: its file, or True to download that of
            `vanilla_vmamba_small`. Stages that are deeper there give their first blocks.
        decoder_weights: With `encoder_weights`, start the decoder's blocks from the mirrored stages too.
        pad: Take any size, see `SegmentationModel`.

    Raises:
        CheckpointError: the classifier's file does not fit.
        ValueError: an argument is out of its range.
    """

    gray = True
    prefix = r"^vmunet\."
    classifier = "decoder.head"
    aliases = (
        (r"\.mhs\.x_ssproj\.weight$", ".mhs.x_ssproj_W"),
        (r"\.scanning\.seq2seq_engine\.", ".mambaeng."),
    )
    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^encoder\.stem\.",
        tell_tale=(r"^(vmunet\.)?layers_up\.\d+\.blocks\.", r"^(vmunet\.)?layers\.\d+\.blocks\.\d+\.self_attention\."),
        names=(
            (r"^(?:patch_embed|layers)\..*$", lambda match: "encoder." + VMamba.layout.rename(match[0])),
            (r"^encoder\.stem\.(conv|norm)1\.", r"encoder.stem.\1."),
            (r"^layers_up\.(.*)$", _decoder_name),
            (r"^final_up\.", "decoder.expand."),
            (r"^final_conv\.", "decoder.head."),
            (r"\.mixer\.mhs\.", ".mixer.scan."),
            (r"\.x_ssproj_W$", ".head_proj.weight"),
            (r"\.scanhead_([CXSZ])\.mambaeng\.", lambda match: f".heads.{'CXSZ'.index(match[1])}.ssm."),
            (r"\.dt_projs_(weight|bias)$", r".dt_\1"),
            (r"\.A_logs$", ".A_log"),
            (r"\.Ds$", ".D"),
            (r"\.cat_norm\.", ".norm."),
            (r"\.y_proj\.", ".out_proj."),
        ),
        refuse=(
            Refusal(
                having=r"^(layers|stages)\.\d+\.blocks\.",
                without=r"^layers_up\.",
                why="the file is a classifier's, not a VM-UNet's; start the encoder from it by encoder_weights=FILE",
            ),
        ),
    )

    def __init__(
        self,
        num_classes: int = 1,
        in_chans: int = 3,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 2, 2),
        depths_decoder: Sequence[int] = (2, 2, 2, 1),
        mixer: str = "ss2d",
        d_state: int = 16,
        heads: int = 4,
        threshold: float = 0.5,
        scan: str = "cross",
        drop_path_rate: float = 0.2,
        encoder_weights: bool | str | PathLike = False,
        decoder_weights: bool = True,
        pad: bool = True,
    ):
        super().__init__(in_chans, num_classes, 4 * 2 ** (len(dims) - 1), pad)
        if len(dims) != len(depths):
            raise ValueError(f"dims and depths must be of one length, got {len(dims)} and {len(depths)}")
        self.mixer = mixer
        block = _block_maker(mixer, d_state, heads, threshold, scan)
        self.encoder = VMUNetEncoder(3 if in_chans == 1 else in_chans, dims, depths, drop_path_rate, block)
        self.decoder = VMUNetDecoder(dims, num_classes, depths_decoder, block, drop_path_rate)
        self.init_weights(needs_reset=False)
        if encoder_weights:
            self.load_classifier(encoder_weights, decoder_weights)

    def forward_logits(self, x: Tensor) -> Tensor:
        """The model itself, for sides that are multiples of `size_multiple`."""
        return self.decoder(*self.encoder(x))

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward instead of storing what they need."""
        for stage in [*self.encoder.stages, *self.decoder.stages]:
            stage.grad_checkpointing = enable

    def load_classifier(self, file: bool | str | PathLike, decoder: bool = True) -> None:
        """Start from a classifier of VMamba's first generation, and log what went where.

        Args:
            file: Its file; True downloads that of `vanilla_vmamba_small`.
            decoder: Fill the decoder's blocks from the mirrored stages too.

        Raises:
            CheckpointError: the file is another model's, of another generation, or of other widths or states.
            ValueError: this model has other mixers.
        """
        if self.mixer != "ss2d":
            raise ValueError("classifiers have the mixer 'ss2d'; build with mixer='ss2d', or without encoder_weights")
        if file is True:
            weights = timm.create_model(_CLASSIFIER, pretrained=True).state_dict()
        else:
            weights = _classifier_weights(read(file).weights)  # type: ignore[arg-type]
        ours = self.encoder.state_dict()
        taken = {name: value for name, value in weights.items() if name in ours}
        wrong = [n for n, v in ours.items() if n not in taken or v.shape != taken[n].shape]
        if wrong:
            raise CheckpointError(
                f"the classifier has other widths, states or channels than the encoder, or fewer blocks: {wrong[0]} "
                f"is {tuple(ours[wrong[0]].shape)} here and "
                f"{tuple(taken[wrong[0]].shape) if wrong[0] in taken else 'missing'} there ({len(wrong)} such)"
            )
        self.encoder.load_state_dict(taken)
        mirrored = {}
        if decoder:
            last = len(self.encoder.stages) - 1
            for name in self.decoder.state_dict():
                match = re.match(r"stages\.(\d+)\.(blocks\..*)$", name)
                if match and (found := weights.get(f"stages.{last - int(match[1])}.{match[2]}")) is not None:
                    mirrored[name] = found
            self.decoder.load_state_dict(mirrored, strict=False)
        _logger.info(
            "%d of the classifier's %d tensors fill the encoder's %d, %d of them go to the decoder's %d too",
            *(len(taken), len(weights), len(ours), len(mirrored), len(self.decoder.state_dict())),
        )

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Refuse a file of the other mixer, or of other heads, in a sentence."""
        heads = {match[1] for name in state_dict if (match := re.search(r"\.mixer\.scan\.heads\.(\d+)\.", name))}
        found = "mhs" if heads else "ss2d"
        if found != self.mixer and any(".mixer." in name for name in state_dict):
            raise CheckpointError(
                f"the file is of a network with mixer={found!r}, not {self.mixer!r}: build with mixer={found!r}"
            )
        if self.mixer == "ss2d":
            return state_dict
        ours = {match[1] for name in self.state_dict() if (match := re.search(r"\.mixer\.scan\.heads\.(\d+)\.", name))}
        if heads and heads != ours:
            raise CheckpointError(
                f"the file has {len(heads)} heads, the model {len(ours)}: build with heads={len(heads)}"
            )
        return {re.sub(r"\.mixer\.out_norm\.", ".mixer.norm.", name): value for name, value in state_dict.items()}


def _classifier_weights(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a first-generation classifier under our names, complete or refused."""
    if any(re.search(r"\.mlp\.|^patch_embed\.5\.|^stem\.conv2\.", name) for name in weights):
        raise CheckpointError(
            "the file is a classifier of VMamba's second generation; VM-UNet's encoder is of the first: take a file of "
            "vanilla_vmamba_*, for example vssmsmall_dp03_ckpt_epoch_238.pth"
        )
    names = VMamba.layout.convert(weights, {})
    depths: dict[int, int] = {}
    for name in names:
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
            depths[int(match[1])] = max(depths.get(int(match[1]), 0), int(match[2]) + 1)
    stem = names.get("stem.conv1.weight", names.get("stem.conv.weight"))
    head = names.get("head.fc.weight")
    a_log = names.get("stages.0.blocks.0.mixer.ssm.A_log")
    if not depths or sorted(depths) != list(range(len(depths))) or stem is None or a_log is None:
        raise CheckpointError("the file is no classifier of VMamba's first generation (vanilla_vmamba_*)")
    with torch.device("meta"):
        classifier = VMamba(
            stem.shape[0],
            [depths[i] for i in range(len(depths))],
            d_state=a_log.shape[-1],
            ssm_ratio=2.0,
            gated=True,
            conv_bias=True,
            mlp_ratio=0.0,
            stem="patch",
            downsample="merge",
            in_chans=stem.shape[1],
            num_classes=0 if head is None else head.shape[0],
        )
    return VMamba.checkpoint_filter_fn(weights, classifier)
