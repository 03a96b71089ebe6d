"""The shapes that models give the scans: the one list that every benchmark of their kernels reads."""

from typing import NamedTuple

import torch
from torch import Tensor

from visionssm.scans import scan_table


class ScanShape(NamedTuple):
    """One call of the scan. `rank` 0: delta has all channels; `by_step`: delta, B and C are stored by step."""

    name: str
    height: int
    width: int
    channels: int
    states: int
    rank: int
    scan: str
    own_input: bool = False  # u has a route axis
    by_step: bool = False
    u_by_step: bool = False
    batch: int = 128

    @property
    def tokens(self) -> int:
        return self.height * self.width

    def order(self, device: str = "cpu") -> Tensor:
        return scan_table(self.scan, self.height, self.width, device)


VMAMBA_TINY = tuple(
    ScanShape(f"VMamba-T stage {i + 1}", 56 >> i, 56 >> i, 96 << i, 1, 6 << i, "cross") for i in range(4)
)

MODEL_SHAPES = (
    *VMAMBA_TINY,
    ScanShape("VMamba-B stage 1", 56, 56, 128, 1, 8, "cross"),
    ScanShape("VMamba-B stage 4", 7, 7, 1024, 1, 64, "cross"),
    ScanShape("VMamba-T detection stage 1", 200, 334, 96, 1, 6, "cross", batch=2),
    ScanShape("vanilla VMamba-T stage 1", 56, 56, 192, 16, 6, "cross"),
    ScanShape("vanilla VMamba-T stage 4", 7, 7, 1536, 16, 48, "cross"),
    ScanShape(
        "LocalVim-S",
        14,
        14,
        768,
        16,
        24,
        "raster+vertical+local7+local7_flip",
        own_input=True,
        by_step=True,
        u_by_step=True,
    ),
    ScanShape("LocalVMamba-T stage 3", 14, 14, 768, 16, 24, "raster+vertical+local7+local7_flip"),
    ScanShape("LocalVMamba-T stage 3, padded windows", 10, 10, 768, 16, 24, "raster+vertical+local7+local7_flip"),
    ScanShape("GroupMamba-T stage 1", 56, 56, 16, 1, 1, "cross", own_input=True),
    ScanShape("GroupMamba-T stage 3", 14, 14, 87, 1, 6, "cross", own_input=True),
    ScanShape("Vim-S", 14, 14, 768, 16, 24, "bidirectional", own_input=True),
    ScanShape("Vim-S 1248", 78, 78, 768, 16, 24, "bidirectional", own_input=True, batch=4),
    ScanShape("PlainMamba-L1", 14, 14, 384, 16, 12, "snake", by_step=True),
)

CONVOLVED = ("Vim-S", "LocalVim-S")  # a causal convolution of four taps lies before the scan

# height = width, channels, states; later stages have attention in the place of the scan
WAVEFRONT_SHAPES = {
    "Mamba2D-N stage 1": (56, 32, 16),
    "Mamba2D-T stage 1": (56, 64, 16),
    "Mamba2D-T stage 2": (28, 128, 16),
    "Mamba2D-S stage 1": (56, 96, 16),
    "Mamba2D-S stage 2": (28, 192, 16),
}

# what a CPU is measured with, one image each; the step size has all channels, as the operator's definition has it
CPU_SHAPES = tuple(
    shape._replace(batch=1, rank=0)
    for shape in MODEL_SHAPES
    if shape.name in ("VMamba-T stage 1", "VMamba-T stage 2", "Vim-S", "vanilla VMamba-T stage 1")
)


def make_inputs(
    shape: ScanShape, dtype: torch.dtype, device: str = "cpu", batch: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Arguments of `selective_scan` with magnitudes as in an initialised model (steps between 0.001 and 0.1)."""
    generator = torch.Generator(device).manual_seed(seed)  # numbers are made where they are needed
    b, L, d, n = batch or shape.batch, shape.tokens, shape.channels, shape.states
    order = shape.order(device)
    K = order.shape[0]
    S = order.shape[1] if shape.by_step else L
    rank = shape.rank or d

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    # dt, B and C lie in one row, as a projection writes them
    rows = normal(b, S, K, rank + 2 * n).to(dtype)
    delta, B, C = rows.split([rank, n, n], -1)
    step = torch.exp(torch.rand(K, d, generator=generator, device=device) * 4.6 - 6.9)
    inputs = dict(
        u=normal(b, S if shape.u_by_step else L, *((K,) if shape.own_input else ()), d).to(dtype),
        delta=delta,
        A=-torch.arange(1.0, n + 1).expand(K, d, n).contiguous().to(device),
        B=B,
        C=C,
        D=torch.ones(K, d, device=device),
        delta_bias=step + torch.log(-torch.expm1(-step)),
        order=order,
    )
    if shape.rank:
        inputs["dt_weight"] = normal(K, d, rank) * rank**-0.5
    if shape.by_step:
        inputs["index"] = "step"
    if shape.u_by_step:
        inputs["u_index"] = "step"
        inputs["num_tokens"] = L
    return inputs
