"""Checkpoints: reading files safely, and fitting weights to models."""

from ..errors import CheckpointError
from .fitting import check_routes, check_same, check_state_dict, classifier_names, fit, identify, load, register_family
from .layout import Layout, Refusal, shifted
from .reading import RUN_STATE, WEIGHTS, Checkpoint, inert_stand_ins, read, read_content, run_state, unwrap

__all__ = [
    "RUN_STATE",
    "WEIGHTS",
    "Checkpoint",
    "CheckpointError",
    "Layout",
    "Refusal",
    "check_routes",
    "check_same",
    "check_state_dict",
    "classifier_names",
    "fit",
    "identify",
    "inert_stand_ins",
    "load",
    "read",
    "read_content",
    "register_family",
    "run_state",
    "shifted",
    "unwrap",
]
