"""mmcv's operators without compiling mmcv, on torchvision's kernels and plain PyTorch.

mmcv keeps its kernels in one compiled module, `mmcv._ext`, and everything else in Python. Where that module is absent
(mmcv-lite), `provide` puts the functions of this package in its place; where it is compiled, it stays. What is given:

| operator | here | runs on |
|---|---|---|
| `nms`, `batched_nms` | torchvision | CPU, CUDA |
| `soft_nms`, `nms_match` | NumPy (mmcv too runs them on the CPU) | CPU |
| `bbox_overlaps` | PyTorch | any device |
| `RoIAlign` | torchvision; maximum of samples by PyTorch | CPU, CUDA |
| `RoIPool` | PyTorch (mmcv's bins are not torchvision's) | any device |
| `DeformConv2d`, `ModulatedDeformConv2d` | torchvision | CPU, CUDA |
| `sigmoid_focal_loss`, without class weights | PyTorch | any device |
| `MultiScaleDeformableAttention` | PyTorch, mmcv's own form | any device |
| `MaskedConv2d` | PyTorch | any device |

What mmcv has in Python already needs nothing from here (`point_sample`, corner pooling, criss-cross attention).
Anything else raises NotImplementedError when it is called. Half precision is computed in float32 and rounded once.
"""

from .loading import BrokenOperatorsError, are_compiled, provide

__all__ = ["BrokenOperatorsError", "are_compiled", "provide"]
