"""Kernels launched again and again with the same sizes, without Triton's search for what it has compiled."""

from collections.abc import Callable

from triton.compiler import CompiledKernel


class Prepared:
    """One kernel on one grid with every argument but its tensors.

    The first call goes through Triton, which compiles for the kinds of the arguments: dtypes, numbers that are one or
    multiples of 16, addresses that are. Later calls go to what was compiled. Whoever keeps a `Prepared` therefore gives
    it tensors of the same kinds, on the same device, every time.
    """

    def __init__(self, kernel, grid: tuple[int, ...], **constants) -> None:
        self.kernel, self.grid, self.constants = kernel, grid, constants
        self.run: Callable[..., None] | None = None
        self.arguments: list = []  # in the kernel's order
        self.places: list[tuple[str, int]] = []  # of the tensors among them

    def __call__(self, **tensors) -> None:
        if self.run is not None:
            arguments = self.arguments.copy()
            for name, place in self.places:
                arguments[place] = tensors[name]
            self.run(*arguments)
            return
        compiled = self.kernel[self.grid](**tensors, **self.constants)
        if isinstance(compiled, CompiledKernel):  # nothing is where kernels are interpreted
            names = self.kernel.arg_names
            self.arguments = [self.constants.get(name) for name in names]
            self.places = [(name, names.index(name)) for name in tensors]
            self.run = compiled[(*self.grid, 1, 1)[:3]]
