"""Checkpoints: reading files safely, and fitting weights to models."""

from ..errors import CheckpointError
from .fitting import check_routes, check_state_dict, identify, register_family
from .layout import Layout, Refusal, shifted
from .reading import check_checkpoint_file, inert_stand_ins, unwrap

__all__ = [
    "CheckpointError",
    "Layout",
    "Refusal",
    "check_checkpoint_file",
    "check_routes",
    "check_state_dict",
    "identify",
    "inert_stand_ins",
    "register_family",
    "shifted",
    "unwrap",
]
