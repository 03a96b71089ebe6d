"""The wavefront scan as Triton kernels: one program walks some channels of one image; deterministic."""

from ... import triton_interpreter

if triton_interpreter.INTERPRETING:
    triton_interpreter.repair()

from .launch import backward, forward, states_shape  # noqa: E402  after the repair

__all__ = ["backward", "forward", "states_shape"]
