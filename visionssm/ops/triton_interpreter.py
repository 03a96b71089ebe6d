"""Triton's interpreter, TRITON_INTERPRET=1, which runs the kernels on a CPU with numpy: for tests, very slow."""

import triton.language as tl
from triton import knobs
from triton.runtime import interpreter

INTERPRETING: bool = knobs.runtime.interpret


_repaired = False


def repair() -> None:
    """Mend two things that the interpreter of Triton 3.6.0 cannot do; remove each when the oldest supported one can.

    `range` over a scalar with numpy >= 2.4, which no longer turns arrays of one element into integers; products of
    bfloat16 tiles, which it keeps as integers of the same bits.
    """
    global _repaired
    if _repaired:
        return
    _repaired = True
    patch_tensor = interpreter._patch_lang_tensor
    builder = interpreter.InterpreterBuilder
    create_dot = builder.create_dot

    def patched_tensor(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def patched_dot(self, a, b, *args):
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return create_dot(self, a, b, *args)

    interpreter._patch_lang_tensor = patched_tensor
    builder.create_dot = patched_dot
