"""Checkpoints: reading files safely, and fitting weights to models."""

from ..errors import CheckpointError
from .fitting import check_routes, check_state_dict, identify
from .reading import check_checkpoint_file, inert_stand_ins, unwrap

__all__ = [
    "CheckpointError",
    "check_checkpoint_file",
    "check_routes",
    "check_state_dict",
    "identify",
    "inert_stand_ins",
    "unwrap",
]
