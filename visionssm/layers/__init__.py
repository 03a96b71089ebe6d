"""Blocks that model families share. Maps are (batch, height, width, channels), tokens (batch, tokens, channels)."""

from .block import ResidualBlock
from .conv_norm_act import ConvNormAct
from .downsample import BottleneckDownsample, ConvDownsample, PatchMerging
from .dw_conv_mlp import DwConvMlp
from .linear import is_plain_linear, split_linear
from .mamba_mixer import BidirectionalMixer, MambaMixer
from .map_conv import MapConv2d
from .map_head import MapHead
from .mixer_init import init_a_log_, init_dt_bias_, init_dt_weight_, init_projection_
from .patch_embed import PatchEmbed
from .patch_expand import PatchExpand, expand_patches
from .pooling import make_map_pool
from .removed import RemovedBlock, RemovedBranch, RemovedScan
from .residual_mamba import ResidualMamba
from .residual_stream import StreamBlock
from .squeeze_excite import SqueezeExcite
from .ss2d import SS2D, SS2D_NAMES
from .ssm import SelectiveSSM, state_dtype
from .stage import Stage
from .stem import ConvStem, DeepConvStem, PatchStem, ResidualConvStem
from .tokens import insert_tokens, remove_tokens, resample_pos_embed, take_tokens

__all__ = [
    "SS2D",
    "SS2D_NAMES",
    "BidirectionalMixer",
    "BottleneckDownsample",
    "ConvDownsample",
    "ConvNormAct",
    "ConvStem",
    "DeepConvStem",
    "DwConvMlp",
    "MambaMixer",
    "MapConv2d",
    "MapHead",
    "PatchEmbed",
    "PatchExpand",
    "PatchMerging",
    "PatchStem",
    "RemovedBlock",
    "RemovedBranch",
    "RemovedScan",
    "ResidualBlock",
    "ResidualConvStem",
    "ResidualMamba",
    "SelectiveSSM",
    "SqueezeExcite",
    "Stage",
    "StreamBlock",
    "expand_patches",
    "init_a_log_",
    "init_dt_bias_",
    "init_dt_weight_",
    "init_projection_",
    "insert_tokens",
    "is_plain_linear",
    "make_map_pool",
    "remove_tokens",
    "resample_pos_embed",
    "split_linear",
    "state_dtype",
    "take_tokens",
]
