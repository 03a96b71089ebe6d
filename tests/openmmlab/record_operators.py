"""Record what mmcv's compiled operators give on a CPU, for test_operators.py.

    python tests/openmmlab/record_operators.py

It needs compiled mmcv (`make openmmlab-compiled`) and writes tests/data/mmcv/operators.safetensors: inputs, outputs and
gradients of every case. The operators that mmcv compiles for GPUs alone (RoIPool, focal loss, masked convolution, the
kernel of multi-scale deformable attention) cannot be recorded this way.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

RECORD = Path(__file__).resolve().parents[1] / "data/mmcv/operators.safetensors"


class Case(NamedTuple):
    """Inputs by name, the operator, and which inputs have gradients."""

    inputs: Callable[[], dict[str, Tensor]]
    call: Callable[..., tuple[Tensor, ...]]
    differentiable: tuple[str, ...] = ()


def boxes(count: int, size: float = 40.0) -> Tensor:
    corners = torch.rand(count, 4) * size
    corners[:, 2:] = corners[:, :2] + 1 + torch.rand(count, 2) * size / 2
    return corners


def scored(count: int = 60) -> dict[str, Tensor]:
    # distinct scores: their order says which box is meant
    return dict(boxes=boxes(count), scores=torch.randperm(count).float().add(1) / (count + 1))


def regions() -> dict[str, Tensor]:
    rois = torch.cat([torch.randint(0, 2, (7, 1)).float(), boxes(7)], dim=1)
    rois[0, 1:] = torch.tensor([-8.0, -5.0, 70.0, 60.0])  # beyond the image
    rois[1, 1:] = torch.tensor([12.0, 9.0, 12.5, 9.25])  # smaller than a pixel of the map
    return dict(input=torch.randn(2, 3, 11, 14), rois=rois)


def convolution(kernel: int, channels: int, out: int, groups: int, parts: int, side: tuple[int, int], scale: float = 2):
    return dict(
        x=torch.randn(2, channels, 9, 7),
        offset=torch.randn(2, 2 * parts * kernel**2, *side) * scale,
        weight=torch.randn(out, channels // groups, kernel, kernel),
    )


def modulated(with_bias: bool) -> dict[str, Tensor]:
    inputs = convolution(3, 4, 6, 2, 2, (5, 4))
    bias = dict(bias=torch.randn(6)) if with_bias else {}
    return dict(inputs, mask=torch.rand(2, 18, 5, 4), **bias)


def padded(groups: list[Tensor]) -> tuple[Tensor, ...]:
    """Lists of indices as rows, filled up by -1."""
    return (torch.nn.utils.rnn.pad_sequence(list(groups), batch_first=True, padding_value=-1),)


def make_cases() -> dict[str, Case]:
    """All cases; mmcv is imported here, so that whoever calls decides which operators it finds."""
    from mmcv import ops
    from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d
    from mmcv.ops.roi_align import roi_align

    cases = {}
    for offset in (0, 1):
        for threshold in (0.3, 0.7):
            cases[f"nms/{offset}/{threshold}"] = Case(
                scored, lambda boxes, scores, o=offset, t=threshold: ops.nms(boxes, scores, t, o)
            )
        cases[f"nms_above_a_score/{offset}"] = Case(
            scored, lambda boxes, scores, o=offset: ops.nms(boxes, scores, 0.5, o, score_threshold=0.4, max_num=9)
        )
        for method in ("naive", "linear", "gaussian"):
            cases[f"soft_nms/{offset}/{method}"] = Case(
                scored,
                lambda boxes, scores, o=offset, m=method: ops.soft_nms(boxes, scores, 0.3, 0.5, 0.05, m, offset=o),
            )
        for mode in ("iou", "iof"):
            for aligned in (False, True):
                cases[f"bbox_overlaps/{mode}/{aligned}/{offset}"] = Case(
                    lambda: dict(a=boxes(9), b=boxes(9)),
                    lambda a, b, m=mode, al=aligned, o=offset: (ops.bbox_overlaps(a, b, m, al, o),),
                )
    cases["nms_match"] = Case(
        lambda: dict(dets=torch.cat([boxes(30), torch.randperm(30).float()[:, None]], dim=1)),
        lambda dets: padded(ops.nms_match(dets, 0.3)),
    )
    for kind in ("nms", "soft_nms"):
        cases[f"batched/{kind}"] = Case(
            lambda: dict(scored(), idxs=torch.randint(0, 3, (60,))),
            lambda boxes, scores, idxs, k=kind: ops.batched_nms(boxes, scores, idxs, dict(type=k, iou_threshold=0.4)),
        )
    for mode in ("avg", "max"):
        for aligned in (False, True):
            for ratio in (0, 2):
                cases[f"roi_align/{mode}/{aligned}/{ratio}"] = Case(
                    regions,
                    lambda input, rois, m=mode, a=aligned, r=ratio: (roi_align(input, rois, (3, 4), 0.25, r, m, a),),
                    ("input",),
                )
    cases["deform_conv2d"] = Case(
        lambda: convolution(3, 4, 6, 1, 1, (9, 7)),
        lambda x, offset, weight: (ops.deform_conv2d(x, offset, weight, 1, 1),),
        ("x", "offset", "weight"),
    )
    cases["deform_conv2d/groups"] = Case(
        lambda: convolution(3, 4, 6, 2, 2, (5, 4)),
        lambda x, offset, weight: (ops.deform_conv2d(x, offset, weight, 2, (2, 1), (2, 1), 2, 2),),
        ("x", "offset", "weight"),
    )
    for bias in (False, True):
        names = ("x", "offset", "mask", "weight", *(["bias"] if bias else []))
        cases[f"modulated_deform_conv2d/{bias}"] = Case(
            partial(modulated, bias),
            lambda x, offset, mask, weight, bias=None: (
                modulated_deform_conv2d(x, offset, mask, weight, bias, 2, 1, 1, 2, 2),
            ),
            names,
        )
    return cases


def run(case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of a case by number, and gradients of a weighted sum of the first one by input."""
    leaves = {k: v.clone().requires_grad_(k in case.differentiable) for k, v in inputs.items()}
    outputs = case.call(**leaves)
    results = {f"output/{i}": y.detach().clone() for i, y in enumerate(outputs)}
    if case.differentiable:
        y = outputs[0]
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
        for name in case.differentiable:
            gradient = leaves[name].grad
            assert gradient is not None, name
            results[f"grad/{name}"] = gradient
    return results


def main() -> int:
    from visionssm.openmmlab.operators import are_compiled

    if not are_compiled():
        print("mmcv's operators are not compiled here: there is nothing to record", file=sys.stderr)
        return 1
    tensors = {}
    for number, (name, case) in enumerate(make_cases().items()):
        torch.manual_seed(number)
        inputs = case.inputs()
        found = {**{f"input/{k}": v for k, v in inputs.items()}, **run(case, inputs)}
        tensors.update({f"{name}/{key}": value.contiguous() for key, value in found.items()})
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    import mmcv

    save_file(tensors, RECORD, metadata=dict(mmcv=mmcv.__version__, torch=torch.__version__))
    print(f"{len(tensors)} tensors, {RECORD.stat().st_size} bytes: {RECORD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
