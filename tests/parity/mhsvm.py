"""MHS-VM's mixer and U-Net against the recorded runs of the original."""

import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from visionssm.models.mhsvm import HEAD_SCANS, GatedMultiHeadScan, MultiHeadScan, ScanRouteAttention

from . import Deviation, compare_operator, fill, reference_input, tolerances
from .vm_unet import build, convert, outputs

RECORDS = ("mhsvm_unet_*",)
__all__ = ["DTYPE", "OPERATORS", "RECORDS", "build", "convert", "outputs"]
# the quotient of deviation and mean is steep where routes nearly agree, so that rounding of ours would come on top of
# what the recorded values have
DTYPE = torch.float64
_NAMES = (
    (r"x_ssproj_W$", "head_proj.weight"),
    (r"scanhead_([CXSZ])\.mambaeng\.", lambda match: f"heads.{'CXSZ'.index(match[1])}.ssm."),
    (r"dt_projs_", "dt_"),
    (r"A_logs$", "A_log"),
    (r"Ds$", "D"),
    (r"cat_norm\.", "norm."),
    (r"y_proj\.", "out_proj."),
    (r"^mhs\.", "scan."),
    (r"^conv2d\.", "conv."),
    (r"^out_norm\.", "norm."),
)
_SCANS = list(HEAD_SCANS.values())
_BLOCKS = {  # constructor, channels first
    "mhs_4h": (lambda: MultiHeadScan(24, _SCANS, threshold=0.5), True),
    "mhs_3h": (lambda: MultiHeadScan(24, _SCANS[:3], threshold=0.0), True),
    "gated_block": (lambda: GatedMultiHeadScan(24, _SCANS, threshold=0.5), False),
    "not_divisible": (lambda: MultiHeadScan(26, _SCANS[:3], threshold=0.5), True),
}


def _blocks(record: dict) -> Iterator[Deviation]:
    yield from _route_attention(record["route_attention"])
    for name, (make, channels_first) in _BLOCKS.items():
        yield from _block(name, record[name], make(), channels_first)


def _input(case: dict) -> Tensor:
    return torch.from_numpy(reference_input(case["input_shape"], case["seed"])).to(DTYPE).requires_grad_()


def _loss(y: Tensor) -> Tensor:
    return (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum()


def _route_attention(case: dict) -> Iterator[Deviation]:
    x = _input(case)  # (b, k, c, L)
    y = ScanRouteAttention(0.5)(x.permute(0, 3, 1, 2)).permute(0, 2, 1)
    yield compare_operator("route attention", y, np.reshape(case["output"], case["output_shape"]))
    (grad,) = torch.autograd.grad(_loss(y), x)
    yield compare_operator("route attention: gradient", grad, np.reshape(case["input_grad"], x.shape))


def _block(name: str, case: dict, block: torch.nn.Module, channels_first: bool) -> Iterator[Deviation]:
    aliases = case["aliases"]
    block = block.to(DTYPE)
    leaves = {
        key: torch.from_numpy(fill(key, tuple(shape))).to(DTYPE).requires_grad_()
        for key, shape in case["keys"]
        if key not in aliases
    }
    ours = block.state_dict()
    weights = {}
    for key, value in leaves.items():
        new = key
        for pattern, replacement in _NAMES:
            new = re.sub(pattern, replacement, new)
        weights[new] = value.reshape(ours[new].shape)
    block.load_state_dict({k: v.detach() for k, v in weights.items()}, strict=True)
    x = _input(case)
    y = torch.func.functional_call(block, weights, (x.permute(0, 2, 3, 1) if channels_first else x,))
    yield compare_operator(f"{name}: output", y, np.reshape(case["output"], case["output_shape"]))
    grads = torch.autograd.grad(_loss(y), [x, *leaves.values()])
    # the quotient of deviation and mean is steep where routes nearly agree: recorded in float32, it is 1e-5 off itself
    expected = np.reshape(case["input_grad"], x.shape)
    difference = np.abs(grads[0].numpy() - expected).max()
    yield Deviation(f"{name}: gradient of the input", float(difference), 1e-4 * float(np.abs(expected).max()))
    norms = case["params_l2"]
    floor = tolerances.GRADIENT_FLOOR * max(norms.values())
    for key, grad in zip(leaves, grads[1:], strict=True):
        difference = abs(float(grad.double().norm()) - norms[key])
        yield Deviation(f"{name}: gradient norm of {key}", difference, max(tolerances.GRADIENTS * norms[key], floor))


OPERATORS = {"mhsvm-blocks": _blocks}
