"""The private parts of timm that a model cannot do without, in one place: if timm moves them, this file breaks."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from timm.models._features import FeatureGetterNet, feature_take_indices
from timm.models._features_fx import register_notrace_function as _register_notrace_function
from timm.models._features_fx import register_notrace_module
from timm.models._input import update_model_input_size
from timm.models._manipulate import reinit_non_persistent_buffers
from torch import Tensor
from torch.fx import Proxy
from torch.utils._pytree import tree_leaves

__all__ = [
    "FeatureGetterNet",
    "feature_take_indices",
    "register_notrace_function",
    "register_notrace_module",
    "reinit_non_persistent_buffers",
    "update_model_input_size",
]

Function = TypeVar("Function", bound=Callable)


def register_notrace_function(function: Function) -> Function:
    """Make a function one node of every graph that torch.fx traces, with or without timm's list of leaves.

    `torch.fx.wrap` would reach only calls from the module that defines the function.
    """

    @wraps(function)
    def traced_as_one(*args, **kwargs):
        for argument in (*args, *kwargs.values()):
            # a tensor is the usual argument, and looking into trees takes longer than some of the functions
            for value in () if isinstance(argument, Tensor) else tree_leaves(argument):
                if isinstance(value, Proxy):
                    return value.tracer.create_proxy("call_function", traced_as_one, args, kwargs)
        return function(*args, **kwargs)

    return _register_notrace_function(traced_as_one)  # type: ignore[return-value]
