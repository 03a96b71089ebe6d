"""The scan as Triton kernels: order, low-rank step sizes and merge inside; deterministic."""

from . import interpreter

if interpreter.INTERPRETING:
    interpreter.repair()

from .launch import backward, forward, states_shape  # noqa: E402  after the repair

__all__ = ["backward", "forward", "states_shape"]
