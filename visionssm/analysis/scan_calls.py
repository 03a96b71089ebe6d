"""Every scan of every family, seen as it is called: with its arguments by name, in the order of the calls."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..ops import causal_conv1d, selective_scan

Call = Callable[..., Any]

SEEN: tuple[Call, ...] = (selective_scan, causal_conv1d)
_SIGNATURES = {function: inspect.signature(function) for function in SEEN}


class ScanCall(NamedTuple):
    """One call of `visionssm.ops.selective_scan` or `visionssm.ops.causal_conv1d`."""

    function: Call
    arguments: dict[str, Any]  # all of them, by name, defaults included
    output: Tensor | tuple[Tensor, Tensor]


class ScanCalls(TorchFunctionMode):
    """A context in which the calls of the scan operators are recorded, whichever module makes them.

    In eager mode; a compiled model makes no calls.

        with ScanCalls() as seen:
            model(images)
        orders = [call.arguments["order"] for call in seen.calls if call.function is selective_scan]

    Args:
        replace: Called in place of each operator with (function, arguments by name); what it returns goes on into the
            model. It may call the function itself. None calls the function.
        keep: Keep the calls, with all their tensors, in `calls`.
    """

    def __init__(self, replace: Callable[[Call, dict[str, Any]], Any] | None = None, keep: bool = True) -> None:
        super().__init__()
        self.replace = replace
        self.keep = keep
        self.calls: list[ScanCall] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in SEEN:
            return func(*args, **kwargs)
        bound = _SIGNATURES[func].bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        output = func(**arguments) if self.replace is None else self.replace(func, arguments)
        if self.keep:
            self.calls.append(ScanCall(func, arguments, output))
        return output
