"""Time mmcv's operators on one CPU thread, whichever are installed: `python benchmarks/openmmlab_operators.py`."""

import time
from collections.abc import Callable

import torch

import visionssm.openmmlab  # noqa: F401  operators, where mmcv has none compiled


def milliseconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Shortest processor time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def with_backward(function: Callable[[], torch.Tensor]) -> Callable[[], None]:
    def both() -> None:
        y = function()
        y.backward(torch.ones_like(y))

    return both


def main() -> None:
    from mmcv import ops  # after visionssm.openmmlab
    from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d
    from mmcv.ops.roi_align import roi_align

    torch.set_num_threads(1)
    torch.manual_seed(0)
    boxes, scores = torch.rand(2000, 4) * 400, torch.rand(2000)
    boxes[:, 2:] = boxes[:, :2] + 5 + torch.rand(2000, 2) * 100
    maps = torch.randn(2, 256, 50, 68, requires_grad=True)
    rois = torch.cat([torch.randint(0, 2, (512, 1)).float(), boxes[:512] * 1.5], dim=1)
    x, weight = torch.randn(2, 64, 40, 40, requires_grad=True), torch.randn(64, 64, 3, 3, requires_grad=True)
    offset, mask = torch.randn(2, 18, 40, 40, requires_grad=True), torch.rand(2, 9, 40, 40)

    def align(mode: str) -> torch.Tensor:
        return roi_align(maps, rois, 7, 0.125, 0, mode, True)

    cases = {
        "nms, 2000 boxes": lambda: ops.nms(boxes, scores, 0.5),
        "soft_nms, 500 boxes": lambda: ops.soft_nms(boxes[:500], scores[:500], 0.5),
        "bbox_overlaps, 2000 x 500 boxes": lambda: ops.bbox_overlaps(boxes, boxes[:500]),
        "roi_align, 512 regions of 256 x 50 x 68": lambda: align("avg"),
        "the same with backward": with_backward(lambda: align("avg")),
        "the same by maximum, forward": lambda: align("max"),
        "deform_conv2d, 64 x 40 x 40, with backward": with_backward(lambda: ops.deform_conv2d(x, offset, weight, 1, 1)),
        "modulated_deform_conv2d, likewise": with_backward(
            lambda: modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)
        ),
    }
    for name, function in cases.items():
        print(f"{name}: {milliseconds(function):.1f} ms")


if __name__ == "__main__":
    main()
