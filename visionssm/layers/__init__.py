"""Blocks that model families share. Maps are (batch, height, width, channels), tokens (batch, tokens, channels)."""
from .downsample import ConvDownsample, PatchMerging
from .local_ss2d import LocalSS2D
from .mixer_init import init_a_log_, init_dt_bias_, init_dt_weight_, init_projection_
from .route_gate import RouteGate
from .ss2d import SS2D
from .ssm import SelectiveSSM, state_dtype
from .stage import Stage
from .stem import ConvStem, PatchStem

__all__ = [
    "SS2D",
    "ConvDownsample",
    "ConvStem",
    "LocalSS2D",
    "PatchMerging",
    "PatchStem",
    "RouteGate",
    "SelectiveSSM",
    "Stage",
    "init_a_log_",
    "init_dt_bias_",
    "init_dt_weight_",
    "init_projection_",
    "state_dtype",
]
