"""LocalMamba: scans along rows, columns and within windows, chosen for each block by a search.

Paper: LocalMamba: Visual State Space Model with Windowed Selective Scan, https://arxiv.org/abs/2403.09338
Original code and weights: https://github.com/hunto/LocalMamba (Apache-2.0)

LocalVMamba is hierarchical and works on maps (batch, height, width, channels).
"""
import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, DropPath, LayerNorm, calculate_drop_path_rates, get_norm_layer
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import LocalSS2D, PatchMerging, PatchStem, Stage
from ..scans import check_scan
from ._builder import build_model
from ._checkpoint import CheckpointError, check_state_dict, identify, unwrap
from ._hierarchical import HierarchicalModel

__all__ = ["LocalVMamba"]


def scan_names(directions: str) -> tuple[str, ...]:
    """Names of scan orders, one for each line of the original's codes: h, v, w2, w7, reversed with _flip."""
    names = {"h": "raster", "v": "vertical", "w": "window"}
    return tuple("+".join(names[code[0]] + code[1:] for code in line.split()) for line in directions.splitlines())


_LOCALVMAMBA_TINY = scan_names("""\
h h_flip w7 w7_flip
h_flip v_flip w2 w2_flip
h_flip v_flip w2_flip w7
h_flip v v_flip w2
h h_flip v_flip w2_flip
h_flip v_flip w2 w2_flip
h w2_flip w7 w7_flip
h h_flip v v_flip
h v_flip w7 w7_flip
h_flip v w2 w7_flip
v v_flip w2 w7_flip
h h_flip v_flip w2_flip
v_flip w2_flip w7 w7_flip
h_flip v_flip w2_flip w7_flip
h_flip v w7 w7_flip""")

_LOCALVMAMBA_SMALL = scan_names("""\
h v v_flip w7_flip
h h_flip v w7
h_flip v v_flip w7
h_flip v w2_flip w7
h_flip v w2_flip w7
h_flip v_flip w2 w7_flip
h_flip v v_flip w7
h v v_flip w7
h v v_flip w7
h v v_flip w7_flip
h h_flip v v_flip
h v v_flip w2
v v_flip w2_flip w7
h h_flip v w2
h_flip v v_flip w7_flip
h h_flip v v_flip
h v v_flip w7_flip
h v v_flip w7_flip
h h_flip v_flip w7
h_flip v_flip w2_flip w7
h_flip v v_flip w7_flip
v v_flip w7 w7_flip
h v v_flip w7_flip
h_flip v v_flip w2
h v v_flip w2_flip
h h_flip v w7
h h_flip w7 w7_flip
h v_flip w2 w2_flip
h v_flip w2 w7
h v v_flip w7_flip
h_flip v w2_flip w7
h_flip v_flip w7 w7_flip
h v w7 w7_flip""")


def _scan_of_each_block(scan: str | Sequence[str], depth: int) -> list[str]:
    scans = [scan] * depth if isinstance(scan, str) else list(scan)
    for name in scans:
        check_scan(name)
    if len(scans) != depth:
        raise ValueError(f"scan must be one name for all blocks or a list of {depth}, one for each block; "
                         f"got {len(scans)} names")
    return scans


class LocalVMambaBlock(nn.Module):
    """Residual mixer."""

    def __init__(
            self,
            dim: int,
            d_state: int,
            ssm_ratio: float,
            scan: str,
            drop_path: float = 0.0,
            proj_drop: float = 0.0,
            norm_layer: type[nn.Module] = LayerNorm,
            device=None,
            dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = norm_layer(dim, **dd)
        self.mixer = LocalSS2D(
            dim, int(ssm_ratio * dim), d_state, dt_rank=math.ceil(dim / 16), scan=scan, norm_layer=norm_layer,
            proj_drop=proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))


class LocalVMamba(HierarchicalModel):
    """LocalVMamba (arXiv:2403.09338).

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier; "" for none.
        dims: Channels of each stage.
        depths: Blocks of each stage.
        d_state: States per channel of the scan.
        ssm_ratio: Channels of the scan over channels of the block.
        scan: Name of the scan order of all blocks, or one name for each block, counted over the stages; see
            `visionssm.scans`. Each route has its own parameters.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the projection of the mixer.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        norm_layer: Norm over channels, a name or a class.
        norm_eps: Epsilon of the norms.
        weight_init: "" as published, or "skip".
    """

    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            dims: Sequence[int] = (96, 192, 384, 768),
            depths: Sequence[int] = (2, 2, 9, 2),
            d_state: int = 16,
            ssm_ratio: float = 2.0,
            scan: str | Sequence[str] = _LOCALVMAMBA_TINY,
            drop_rate: float = 0.0,
            proj_drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            norm_layer: str | type[nn.Module] = "layernorm",
            norm_eps: float = 1e-5,
            weight_init: str = "",
            device=None,
            dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if weight_init not in ("", "skip"):
            raise ValueError(f"weight_init must be '' or 'skip', got {weight_init!r}")
        if len(dims) != len(depths):
            raise ValueError(f"dims and depths must be of one length, got {len(dims)} and {len(depths)}")
        scans = iter(_scan_of_each_block(scan, sum(depths)))
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.output_fmt = "NHWC"
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = []
        norm_layer = partial(get_norm_layer(norm_layer), eps=norm_eps)

        self.stem = PatchStem(in_chans, dims[0], norm_layer=norm_layer, **dd)
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, dim in enumerate(dims):
            stages.append(Stage(
                PatchMerging(dims[i - 1], dim, norm_layer=norm_layer, **dd) if i > 0 else nn.Identity(),
                [
                    LocalVMambaBlock(
                        dim, d_state, ssm_ratio, next(scans), drop_path=rate, proj_drop=proj_drop_rate,
                        norm_layer=norm_layer, **dd)
                    for rate in drop_path_rates[i]
                ]))
            self.feature_info.append(dict(num_chs=dim, reduction=4 * 2 ** i, module=f"stages.{i}"))
        self.stages = nn.Sequential(*stages)
        self.norm = norm_layer(self.num_features, **dd)
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt=self.output_fmt, **dd)
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that the original training did not decay beyond biases and vectors.

        There the skip weights D were vectors; here they are (routes, channels). A_log, dt_weight and dt_bias were
        decayed.
        """
        return {name for name, _ in self.named_parameters() if name.endswith(".ssm.D")}


_NAMES = (
    (r"^patch_embed\.0\.", "stem.conv."),
    (r"^patch_embed\.2\.", "stem.norm."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.op\.", r"stages.\1.blocks.\2.mixer."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"\.mixer\.conv2d\.", ".mixer.conv."),
    (r"\.mixer\.x_proj_weight$", ".mixer.ssm.x_proj_weight"),
    (r"\.mixer\.dt_projs_weight$", ".mixer.ssm.dt_weight"),
    (r"\.mixer\.dt_projs_bias$", ".mixer.ssm.dt_bias"),
    (r"\.mixer\.A_logs$", ".mixer.ssm.A_log"),
    (r"\.mixer\.Ds$", ".mixer.ssm.D"),
    (r"\.multi_scan\.attn\.norm\.", ".merge.norm."),
    (r"\.multi_scan\.attn\.global_reduce\.", ".merge.reduce."),
    (r"\.multi_scan\.attn\.channel_select\.", ".merge.expand."),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.head\.", "head.fc."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: LocalVMamba) -> dict[str, Tensor]:
    """Convert a published LocalVMamba checkpoint to the names of `LocalVMamba`; a state dict of ours passes unchanged.

    Raises:
        CheckpointError: the weights do not fill the model exactly, were made for another number of routes, or are
            those of a network that searches directions.
    """
    source = unwrap(state_dict)
    _refuse_supernet(source)
    if "stem.conv.weight" in source:
        out = source
    else:
        out = {_convert_name(name): value for name, value in source.items()}
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    for name, value in out.items():
        shape = shapes.get(name)
        if shape is not None and name.endswith(".ssm.x_proj_weight") and value.shape[0] != shape[0]:
            raise CheckpointError(
                f"the checkpoint was trained with {value.shape[0]} routes per block, but the model's scan has "
                f"{shape[0]} at {name}; use scan orders of {value.shape[0]} routes")
        # published A_log and D have no axis for the route
        if shape is not None and name.endswith((".ssm.A_log", ".ssm.D")) and value.ndim == len(shape) - 1:
            out[name] = value.reshape(shape) if value.numel() == shape.numel() else value
    check_state_dict(out, model, source)
    return out


def _convert_name(name: str) -> str:
    downsample = re.match(r"^layers\.(\d+)\.downsample\.(.*)", name)
    if downsample:  # there a stage ends with the downsampling, here the next one begins with it
        return f"stages.{int(downsample[1]) + 1}.downsample.{downsample[2]}"
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    return name


def _refuse_supernet(source: dict[str, Any]) -> None:
    if any(name.endswith("multi_scan.weights") for name in source):
        raise CheckpointError(
            f"the checkpoint is a {identify(source) or 'LocalMamba'} network that searches scan directions (it has "
            "multi_scan.weights: all eight directions in every block); expected a network trained with chosen ones")


_RELEASES = "https://github.com/hunto/LocalMamba/releases/download/v1.0.0/"


def _cfg(asset: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": _RELEASES + asset if asset else "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "origin_url": "https://github.com/hunto/LocalMamba",
        "paper_name": "LocalMamba: Visual State Space Model with Windowed Selective Scan",
        "paper_ids": "arXiv:2403.09338",
        **kwargs,
    }


default_cfgs = generate_default_cfgs({
    "localvmamba_tiny.in1k": _cfg(),
    "localvmamba_small.in1k": _cfg("local_vssm_small.ckpt"),
    "test_localvmamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
})


def _create_localvmamba(variant: str, pretrained: bool, **kwargs: Any) -> LocalVMamba:
    return build_model(LocalVMamba, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def localvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-T with its searched directions; its weights were never released."""
    args = dict(depths=(2, 2, 9, 2), scan=_LOCALVMAMBA_TINY)
    return _create_localvmamba("localvmamba_tiny", pretrained, **dict(args, **kwargs))


@register_model
def localvmamba_small(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-S with its searched directions."""
    args = dict(depths=(2, 2, 27, 2), scan=_LOCALVMAMBA_SMALL)
    return _create_localvmamba("localvmamba_small", pretrained, **dict(args, **kwargs))


@register_model
def test_localvmamba(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(dims=(16, 32, 48, 64), depths=(1, 1, 2, 1), d_state=4, scan=_LOCALVMAMBA_TINY[:5])
    return _create_localvmamba("test_localvmamba", pretrained, **dict(args, **kwargs))
