"""The private parts of timm that a model cannot do without, in one place: if timm moves them, this file breaks."""

from timm.models._features import feature_take_indices
from timm.models._features_fx import register_notrace_function, register_notrace_module
from timm.models._input import update_model_input_size
from timm.models._manipulate import reinit_non_persistent_buffers

__all__ = [
    "feature_take_indices",
    "register_notrace_function",
    "register_notrace_module",
    "reinit_non_persistent_buffers",
    "update_model_input_size",
]
