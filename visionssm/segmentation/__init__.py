"""Whole segmentation networks, in a registry of their own: images to logits of the same size."""

from ._base import SegmentationModel
from ._registry import create_model, list_models
from .lightm_unet import LightMUNet
from .msvm_unet import MSVMDecoder, MSVMUNet
from .segmamba import SegMamba
from .ultralight_vm_unet import UltraLightVMUNet
from .umamba import UMamba, from_nnunet_plans
from .vm_unet import VMUNet, VMUNetDecoder

__all__ = [
    "LightMUNet",
    "MSVMDecoder",
    "MSVMUNet",
    "SegMamba",
    "SegmentationModel",
    "UMamba",
    "UltraLightVMUNet",
    "VMUNet",
    "VMUNetDecoder",
    "create_model",
    "from_nnunet_plans",
    "list_models",
]
