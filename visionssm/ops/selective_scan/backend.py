"""What an implementation of the scan must provide to be one of the backends."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .contract import Scan


class Backend(NamedTuple):
    """One implementation of the scan; `backends.BACKENDS` lists them.

    A backend is told nothing but checked scans (`contract.Scan`) on devices and of dtypes that it says it can run;
    batches are not empty. Its functions are ordinary tensor code without autograd: they are called below it, on real
    tensors, in compiled and exported programs too. `states_shape` alone is also called with symbolic sizes.

    Attributes:
        name: As `backend=` and VISIONSSM_BACKEND call it.
        devices: Types of device ("cuda", "cpu") on which it is taken unasked where it can run; None for all.
        unavailable: Why it cannot run on a type of device with inputs of a dtype (u's): a clause that ends a sentence
            "the ... backend cannot run on ...: ", or None if it can.
        forward: From a scan, and whether a backward will follow, the output in `scan.out_shape` and `scan.out_dtype`;
            the state after the last step, (b, k, d, N) in `scan.compute_dtype`, if `scan.last_state`, else None; and
            what the backward needs (one tensor of `states_shape` in `scan.compute_dtype`), if one will follow.
        backward: From the output's gradient, the last state's (None unless `scan.last_state`), the states that
            `forward` saved and the scan: one gradient for each tensor in `scan.tensors`, in its shape and dtype, and
            None where the scan has none.
        states_shape: Shape of what `forward` saves.
        told_from: State updates of a call (`Scan.updates`) from which on it is said, once, that the backend was meant
            for the device but cannot run; a forward that keeps states for a backward always counts.
    """

    name: str
    devices: tuple[str, ...] | None
    unavailable: Callable[[str, torch.dtype], str | None]
    forward: Callable[[Scan, bool], tuple[Tensor, Tensor | None, Tensor | None]]
    backward: Callable[[Tensor, Tensor | None, Tensor, Scan], tuple[Tensor | None, ...]]
    states_shape: Callable[[Scan], tuple[int, ...]]
    told_from: int = 0
