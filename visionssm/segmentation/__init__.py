"""Whole segmentation networks, in a registry of their own: images to logits of the same size."""

from ._base import SegmentationModel
from ._registry import create_model, list_models
from .lightm_unet import LightMUNet
from .ultralight_vm_unet import UltraLightVMUNet
from .vm_unet import VMUNet, VMUNetDecoder

__all__ = [
    "LightMUNet",
    "SegmentationModel",
    "UltraLightVMUNet",
    "VMUNet",
    "VMUNetDecoder",
    "create_model",
    "list_models",
]
