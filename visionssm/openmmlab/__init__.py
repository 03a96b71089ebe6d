"""Every model of timm's registry as a backbone for mmdet and mmseg; registered at mmengine's root registries.

Name this module in `custom_imports` of a config. It needs mmengine alone: neither mmdet nor mmcv's compiled operators.
"""

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        "visionssm.openmmlab needs mmengine: pip install 'visionssm[openmmlab]'; the compiled operators that detection "
        "needs are described in docs/openmmlab.md"
    ) from error

from .backbone import VisionSSMBackbone
from .channels import ChannelCheckHook, check_channels
from .data import ClassCheckHook, check_classes
from .layer_decay import LayerDecayOptimWrapperConstructor, describe_groups
from .simple_fpn import SimpleFPN

__all__ = [
    "ChannelCheckHook",
    "ClassCheckHook",
    "LayerDecayOptimWrapperConstructor",
    "SimpleFPN",
    "VisionSSMBackbone",
    "check_channels",
    "check_classes",
    "describe_groups",
]
