"""Blocks that model families share. Maps are (batch, height, width, channels), tokens (batch, tokens, channels)."""

from .downsample import ConvDownsample, PatchMerging
from .group_ss2d import GroupSS2D
from .local_route_mixer import LocalRouteMixer
from .local_ss2d import LocalSS2D
from .mixer_init import init_a_log_, init_dt_bias_, init_dt_weight_, init_projection_
from .patch_embed import PatchEmbed
from .residual_stream import StreamBlock
from .rotary import RotaryTables
from .route_gate import RouteGate
from .route_mixer import RouteMixer
from .ss2d import SS2D
from .ssm import SelectiveSSM, state_dtype
from .stage import Stage
from .stem import ConvStem, PatchStem
from .tokens import insert_middle_token, middle_token, remove_middle_token, resample_pos_embed

__all__ = [
    "SS2D",
    "ConvDownsample",
    "ConvStem",
    "GroupSS2D",
    "LocalRouteMixer",
    "LocalSS2D",
    "PatchEmbed",
    "PatchMerging",
    "PatchStem",
    "RotaryTables",
    "RouteGate",
    "RouteMixer",
    "SelectiveSSM",
    "Stage",
    "StreamBlock",
    "init_a_log_",
    "init_dt_bias_",
    "init_dt_weight_",
    "init_projection_",
    "insert_middle_token",
    "middle_token",
    "remove_middle_token",
    "resample_pos_embed",
    "state_dtype",
]
