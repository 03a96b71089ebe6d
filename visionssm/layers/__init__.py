"""Blocks that model families share. Maps are (batch, height, width, channels), tokens (batch, tokens, channels)."""
from .downsample import ConvDownsample, PatchMerging
from .mixer_init import init_a_log_, init_dt_bias_, init_dt_weight_, init_projection_
from .ss2d import SS2D
from .ssm import SelectiveSSM, state_dtype
from .stem import ConvStem, PatchStem

__all__ = [
    "SS2D",
    "ConvDownsample",
    "ConvStem",
    "PatchMerging",
    "PatchStem",
    "SelectiveSSM",
    "init_a_log_",
    "init_dt_bias_",
    "init_dt_weight_",
    "init_projection_",
    "state_dtype",
]
