"""Every model of timm's registry as a backbone for mmdet and mmseg; registered at mmengine's root registries.

Name this module in `custom_imports` of a config. It needs mmengine alone. Importing it puts other operators in the
place of mmcv's where those are not compiled (`visionssm.openmmlab.operators`): do so before importing `mmdet.models`.
"""

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        "visionssm.openmmlab needs mmengine: pip install 'visionssm[openmmlab]' (docs/openmmlab.md)"
    ) from error

from ..analysis.jit_counters import register_counters
from .backbone import VisionSSMBackbone
from .channels import ChannelCheckHook, check_channels, fill_channels
from .data import ClassCheckHook, check_classes
from .errors import ConfigError
from .finer_fpn import FinerFPN
from .layer_decay import LayerDecayOptimWrapperConstructor, describe_groups
from .operators import provide
from .simple_fpn import SimpleFPN

__all__ = [
    "ChannelCheckHook",
    "ClassCheckHook",
    "ConfigError",
    "FinerFPN",
    "LayerDecayOptimWrapperConstructor",
    "SimpleFPN",
    "VisionSSMBackbone",
    "check_channels",
    "check_classes",
    "describe_groups",
    "fill_channels",
]

provide()
register_counters()
