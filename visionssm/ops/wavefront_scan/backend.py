"""What an implementation of the wavefront scan must provide to be one of the backends."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .contract import Wavefront


class Backend(NamedTuple):
    """One implementation; `backends.BACKENDS` lists them.

    A backend is told nothing but checked scans (`contract.Wavefront`) on devices and of dtypes that it says it can run.
    Its functions are ordinary tensor code without autograd. `states_shape` alone is also called with symbolic sizes.

    Attributes:
        name: As `backend=` and VISIONSSM_BACKEND call it.
        devices: Types of device ("cuda", "cpu") on which it is taken unasked where it can run; None for all.
        unavailable: See `visionssm.ops.dispatch.Candidate`; the dtype is x's.
        forward: From a scan, and whether a backward will follow, the output in x's shape and dtype, and what the
            backward needs (one tensor of `states_shape` in `scan.compute_dtype`), if one will follow, else None.
        backward: From the output's gradient, the states that `forward` saved and the scan: one gradient for each of its
            tensors, in its shape and dtype, contiguous, and None where the scan has none.
        states_shape: Shape of what `forward` saves.
        told_from: See `visionssm.ops.dispatch.Candidate`; a forward that keeps states for a backward always counts.
    """

    name: str
    devices: tuple[str, ...] | None
    unavailable: Callable[[str, torch.dtype], str | None]
    forward: Callable[[Wavefront, bool], tuple[Tensor, Tensor | None]]
    backward: Callable[[Tensor, Tensor, Wavefront], tuple[Tensor | None, ...]]
    states_shape: Callable[[Wavefront], tuple[int, ...]]
    told_from: int = 0
