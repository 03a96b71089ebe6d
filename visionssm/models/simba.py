"""SiMBA: a pyramid of one-directional Mamba mixers, with an MLP of convolutions or of frequencies between channels.

Paper: SiMBA: Simplified Mamba-Based Architecture for Vision and Multivariate Time series,
https://arxiv.org/abs/2403.15360
Original code: https://github.com/badripatro/simba (no licence, no weights)

Every map is read once, row by row, with 64 states. The pooled map passes one more block; two classifiers, of that class
token and of all other tokens (token labelling, arXiv:2104.10858), give the logits together. Maps are
(batch, height, width, channels) from stem to head; any input size works.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, Mlp, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout, shifted
from ..layers import ConvDownsample, DeepConvStem, DwConvMlp, MambaMixer, MapHead, ResidualBlock, state_dtype
from ..scans import check_scan
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel

__all__ = ["SiMBA"]

CHANNEL_MIXERS = ("mlp", "einfft")
_AUX_WEIGHT = 0.5
_MIX_STRIDE = 8  # cells of the stem's map in a cell of the dense labels
_EPS = 1e-5  # of the norms before a mixer and after a strided convolution
_MAP_NORM = partial(LayerNorm, eps=_EPS)


class MapMamba(MambaMixer):
    """`MambaMixer` of maps (b, h, w, dim)."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Mix a map (b, h, w, dim) of any size; returns the same shape."""
        height, width = x.shape[1], x.shape[2]
        return super().forward(x.flatten(1, 2), height, width).unflatten(1, (height, width))


class EinFFT(nn.Module):
    """Two complex linear layers per block of channels, in the frequencies of tokens and blocks (section 3.2).

    The transform runs over the tokens and over the blocks, as the original's code does; its text names the tokens only.

    Args:
        dim: Channels, a multiple of `blocks`.
        blocks: Number of blocks.
        threshold: Of the soft shrinkage after the second layer.
        drop: Dropout after it all.

    Raises:
        ValueError: the blocks do not divide the channels.
    """

    def __init__(self, dim: int, blocks: int = 4, threshold: float = 0.01, drop: float = 0.0, device=None, dtype=None):
        super().__init__()
        if dim % blocks:
            raise ValueError(f"EinFFT mixes {blocks} blocks of channels; {dim} channels are no multiple of {blocks}")
        self.blocks = blocks
        self.threshold = threshold
        size = dim // blocks
        for i in (1, 2):  # the first axis holds real and imaginary parts
            weight = nn.Parameter(torch.empty(2, blocks, size, size, device=device, dtype=dtype))
            self.register_parameter(f"weight{i}", weight)
            self.register_parameter(f"bias{i}", nn.Parameter(torch.empty(2, blocks, size, device=device, dtype=dtype)))
        self.drop = nn.Dropout(drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal values, biases too."""
        for parameter in self.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to the same shape; transformed in float32, float64 for a float64 model."""
        tokens = state_dtype(x).flatten(1, 2).unflatten(-1, (self.blocks, -1))
        spectrum = torch.fft.fft2(tokens, dim=(1, 2), norm="ortho")
        y = torch.cat([spectrum.real, spectrum.imag], dim=-1)
        y = F.relu(_complex_linear(y, self.weight1, self.bias1))
        y = F.softshrink(_complex_linear(y, self.weight2, self.bias2), self.threshold)
        real, imag = y.chunk(2, dim=-1)
        y = torch.complex(real, imag)
        y = torch.fft.ifft2(y, dim=(1, 2), norm="ortho").real
        return self.drop(y.flatten(2).unflatten(1, x.shape[1:3]).to(x.dtype))


def _complex_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Real and imaginary parts side by side (b, L, k, 2 d), times the complex (2, k, d, e), plus (2, k, e)."""
    weight, bias = state_dtype(weight), state_dtype(bias)
    real, imag = weight[0], weight[1]  # torch.fx cannot iterate over them
    whole = torch.cat([torch.cat([real, imag], -1), torch.cat([-imag, real], -1)], -2)
    return torch.einsum("blkd,kde->blke", x, whole.to(x.dtype)) + torch.cat([bias[0], bias[1]], -1)


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of the grid of dense labels."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def draw(cls, height: int, width: int) -> "Box":
        """A box about a random place whose share of the area is uniform before it is cut at the border."""
        share = torch.rand(()).item()
        half_height, half_width = int(height * share**0.5) // 2, int(width * share**0.5) // 2
        row, column = (int(torch.randint(size, ())) for size in (height, width))
        return cls(
            max(row - half_height, 0),
            max(column - half_width, 0),
            min(row + half_height, height),
            min(column + half_width, width),
        )

    def swap(self, x: Tensor, scale: int = 1) -> Tensor:
        """Exchange what lies in the box between the images of a batch (b, h, w, c) and those of its reverse."""
        rows, columns = (slice(a * scale, b * scale) for a, b in ((self.top, self.bottom), (self.left, self.right)))
        x = x.clone()
        x[:, rows, columns] = x.flip(0)[:, rows, columns]
        return x


class SiMBAHead(MapHead):
    """Class token of the pooled map, class block, norm, and one or two classifiers.

    Args:
        block: The class block.
        norm: Norm of all tokens after it.
        in_features: Channels.
        num_classes: Classes; 0 for no classifier.
        pool_type: Of the map to the class token: "avg", "max" or "avgmax"; or "" for the first classifier at every
            position of the map, without class block and norm.
        drop_rate: Dropout before the classifiers.
        token_label: Have a second classifier, of all other tokens.
    """

    fc_aux: nn.Module

    def __init__(
        self,
        block: nn.Module,
        norm: nn.Module,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        token_label: bool = True,
        device=None,
        dtype=None,
    ):
        classifiers = ("fc", "fc_aux") if token_label else ("fc",)
        super().__init__(in_features, drop_rate, flatten=False, classifiers=classifiers)
        self.token_label = token_label
        self.block = block
        self.norm = norm
        self.reset(num_classes, pool_type, in_features, device=device, dtype=dtype)

    def class_token(self, x: Tensor) -> Tensor:
        """A map (b, h, w, in_features) to its normalised class token (b, in_features)."""
        return self.norm(self.block(self.global_pool(x))).flatten(1)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A map (b, h, w, in_features) to the logits of the class token (b, n), and of each place (b, h, w, n)."""
        return self.fc(self.drop(self.class_token(x))), self.fc_aux(self.drop(self.norm(x)))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A map (b, h, w, in_features) to logits (b, num_classes); with `pre_logits`, to what the classifier sees."""
        if pre_logits or not (self.pool_type and self.token_label and self.num_classes):
            x = self.drop(self.class_token(x) if self.pool_type else x)
            return x if pre_logits else self.fc(x)
        logits, dense = self.both(x)
        return logits + _AUX_WEIGHT * dense.amax((1, 2))


class SiMBA(HierarchicalModel):
    """SiMBA (arXiv:2403.15360).

    The features of the first three stages are normalised, as the next stage reads them, those of the last are not.

    Args:
        dims: Channels of each stage; multiples of 4 for EinFFT.
        depths: Blocks of each stage.
        mlp_ratios: Hidden width of the MLPs over channels, for each stage; EinFFT has none.
        stem_dim: Channels inside the stem.
        channel_mixer: "mlp" with a depthwise convolution, or "einfft".
        token_label: Have a second classifier, of the patch tokens; the logits take half of its largest.
        d_state: States per channel of the scan.
        scan: Name of the scan order, see `visionssm.scans`; each of its routes has its own parameters.
        norm_layer: Norm over channels, a name or a class; stem and downsampling keep to layer norm.
        norm_eps: Epsilon of `norm_layer`, but for the norm before a mixer.
        **shared: Further arguments of `HierarchicalModel`; `global_pool` makes the class token, or with "" the first
            classifier is applied at every position, without class block.

    Raises:
        ValueError: an argument is out of its range, or does not fit another one.
    """

    # these were vectors there, here they are (routes, channels)
    undecayed = (".ssm.D", ".ssm.dt_bias", ".conv_bias")
    layout = Layout(
        own=r"^stem\.down\.conv\.weight$",
        tell_tale=(r"(^|\.)post_network\.0\.attn\.mamba\.A_log$",),
        names=(
            (r"^patch_embed1\.conv\.0\.", "stem.conv1.conv."),
            (r"^patch_embed1\.conv\.1\.", "stem.conv1.bn."),
            (r"^patch_embed1\.conv\.3\.", "stem.conv2.conv."),
            (r"^patch_embed1\.conv\.4\.", "stem.conv2.bn."),
            (r"^patch_embed1\.conv\.6\.", "stem.conv3.conv."),
            (r"^patch_embed1\.conv\.7\.", "stem.conv3.bn."),
            (r"^patch_embed1\.proj\.", "stem.down.conv."),
            (r"^patch_embed1\.norm\.", "stem.down.norm."),
            # stages count from 1 there
            (r"^patch_embed(\d+)\.proj\.", shifted("stages.{}.downsample.conv.", -1)),
            (r"^patch_embed(\d+)\.norm\.", shifted("stages.{}.downsample.norm.", -1)),
            (r"^block(\d+)\.(\d+)\.", shifted(r"stages.{}.blocks.\2.", -1)),
            (r"^post_network\.0\.", "head.block."),
            (r"^norm4\.", "head.norm."),
            (r"^norm(\d+)\.", shifted("stages.{}.norm.", -1)),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
            (r"^aux_head\.", "head.fc_aux."),
            (r"\.attn\.norm\.", ".norm1."),
            (r"\.attn\.mamba\.conv1d\.(weight|bias)$", r".mixer.conv_\1"),
            (r"\.attn\.mamba\.x_proj\.weight$", ".mixer.ssm.x_proj_weight"),
            (r"\.attn\.mamba\.dt_proj\.(weight|bias)$", r".mixer.ssm.dt_\1"),
            (r"\.attn\.mamba\.(A_log|D)$", r".mixer.ssm.\1"),
            (r"\.attn\.mamba\.", ".mixer."),
            (r"\.mlp\.dwconv\.dwconv\.", ".mlp.conv."),
            (r"\.mlp\.complex_(weight|bias)_(\d)$", r".mlp.\1\2"),
        ),
    )

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 320, 448),
        depths: Sequence[int] = (3, 4, 6, 3),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        stem_dim: int = 32,
        channel_mixer: str = "mlp",
        token_label: bool = True,
        d_state: int = 64,
        scan: str = "raster",
        norm_layer: Any = "layernorm",
        norm_eps: float = 1e-6,
        **shared: Any,
    ):
        check_scan(scan)
        if channel_mixer not in CHANNEL_MIXERS:
            known = " or ".join(map(repr, CHANNEL_MIXERS))
            raise ValueError(f"channel_mixer must be {known}, got {channel_mixer!r}")
        if not len(dims) == len(depths) == len(mlp_ratios):
            raise ValueError(
                "dims, depths and mlp_ratios must be of one length, got "
                f"{len(dims)}, {len(depths)} and {len(mlp_ratios)}"
            )

        def make_block(dim: int, mlp_ratio: float, drop_path: float, mlp_cls: Any, kit: Kit) -> ResidualBlock:
            drop, dd = kit.proj_drop, kit.dd
            if channel_mixer == "einfft":
                mlp = EinFFT(dim, drop=drop, **dd)
            else:
                mlp = mlp_cls(dim, int(mlp_ratio * dim), act_layer=kit.act_layer, drop=drop, **dd)
            mixer = MapMamba(dim, scan, d_state, proj_drop=drop, **dd)
            return ResidualBlock(
                partial(kit.norm_layer, eps=_EPS)(dim, **dd), mixer, kit.norm_layer(dim, **dd), mlp, drop_path
            )

        def head(dim: int, num_classes: int, global_pool: str, drop_rate: float, kit: Kit) -> SiMBAHead:
            return SiMBAHead(
                make_block(dim, mlp_ratios[-1], 0.0, Mlp, kit),
                kit.norm_layer(dim, **kit.dd),
                dim,
                num_classes,
                global_pool,
                drop_rate,
                token_label,
                **kit.dd,
            )

        def block(place: Place, kit: Kit) -> ResidualBlock:
            return make_block(place.dim, mlp_ratios[place.stage], place.drop_path, DwConvMlp, kit)

        super().__init__(
            dims,
            depths,
            stem=lambda in_chans, dim, kit: DeepConvStem(in_chans, stem_dim, dim, **kit.dd),
            downsample=lambda dim, dim_out, kit: ConvDownsample(
                dim, dim_out, partial(nn.LayerNorm, eps=_EPS), **kit.dd
            ),
            block=block,
            stage_norm=True,
            norm=nn.Identity,  # the one that was trained stands behind the class block
            head=head,
            norm_layer=norm_layer,
            norm_eps=norm_eps,
            **shared,
        )
        self.scan = scan

    def init_own_weights(self, mode: str) -> None:
        """The original draws the convolutions anew, and the projections inside the scan, whose step begins near 0.7."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, MambaMixer):
                trunc_normal_(module.ssm.x_proj_weight, std=0.02)
                trunc_normal_(module.ssm.dt_weight, std=0.02)
                nn.init.zeros_(module.ssm.dt_bias)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The last layer, or both of them."""
        return (self.head.fc, self.head.fc_aux) if self.head.token_label else self.head.fc

    def forward_train(self, x: Tensor, box: Box | None = None) -> tuple[Tensor, Tensor, Box]:
        """What training with dense labels compares: a box of each image is that of another one ("mix token").

        Args:
            x: Images (b, c, h, w) of height and width divisible by 32.
            box: Of the grid (h / 32, w / 32); drawn if None.

        Returns:
            Logits of the class tokens (b, n); of the places, each under its own image, (b, h w / 1024, n); the box.

        Raises:
            ValueError: the model has one classifier, or the images are of another size.
        """
        if not self.head.token_label:
            raise ValueError("training with dense labels needs token_label=True")
        if x.shape[2] % 32 or x.shape[3] % 32:
            raise ValueError(f"dense labels need sides divisible by 32, got images of {x.shape[2]} x {x.shape[3]}")
        if box is None:
            box = Box.draw(x.shape[2] // 32, x.shape[3] // 32)
        logits, dense = self.head.both(self.stages(box.swap(self.stem(x), _MIX_STRIDE)))
        return logits, box.swap(dense).flatten(1, 2), box

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last one needed, and on request the head; returns the stages kept."""
        num_stages = len(self.stages)
        take_indices = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head or len(self.stages) < num_stages:
            self.head.block = nn.Identity()
            self.head.norm = nn.Identity()
        return take_indices


_cfg = family_cfg(
    license="none",
    origin_url="https://github.com/badripatro/simba",
    paper_name="SiMBA: Simplified Mamba-Based Architecture for Vision and Multivariate Time series",
    paper_ids="arXiv:2403.15360",
    first_conv="stem.conv1.conv",
    classifier=("head.fc", "head.fc_aux"),
    pool_size=(7, 7),
    crop_pct=0.96,
)

default_cfgs = generate_default_cfgs(
    {
        "simba_s.untrained": _cfg(),
        "simba_b.untrained": _cfg(),
        "simba_l.untrained": _cfg(),
        "simba_s_einfft.untrained": _cfg(),
        "simba_b_einfft.untrained": _cfg(),
        "simba_l_einfft.untrained": _cfg(),
        "test_simba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)

_S = dict(dims=(64, 128, 320, 448), depths=(3, 4, 6, 3), stem_dim=32)
_B = dict(dims=(64, 128, 320, 512), depths=(3, 4, 12, 3), stem_dim=64)
_L = dict(dims=(96, 192, 384, 512), depths=(3, 6, 18, 3), stem_dim=64)


@register_model
def simba_s(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-S with an MLP."""
    return build_model(SiMBA, "simba_s", pretrained, kwargs, **_S)


@register_model
def simba_b(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-B with an MLP."""
    return build_model(SiMBA, "simba_b", pretrained, kwargs, **_B)


@register_model
def simba_l(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-L with an MLP."""
    return build_model(SiMBA, "simba_l", pretrained, kwargs, **_L)


@register_model
def simba_s_einfft(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-S with EinFFT."""
    return build_model(SiMBA, "simba_s_einfft", pretrained, kwargs, channel_mixer="einfft", **_S)


@register_model
def simba_b_einfft(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-B with EinFFT."""
    return build_model(SiMBA, "simba_b_einfft", pretrained, kwargs, channel_mixer="einfft", **_B)


@register_model
def simba_l_einfft(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """SiMBA-L with EinFFT."""
    return build_model(SiMBA, "simba_l_einfft", pretrained, kwargs, channel_mixer="einfft", **_L)


@register_model
def test_simba(pretrained: bool = False, **kwargs: Any) -> SiMBA:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(dims=(16, 24, 32, 48), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2), stem_dim=8, d_state=16)
    return build_model(SiMBA, "test_simba", pretrained, kwargs, **args)
