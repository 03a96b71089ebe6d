"""Whole restoration networks, in a registry of their own: images to images, larger by the model's scale."""

from ._base import RestorationModel
from ._registry import create_model, list_models
from ._tiling import tiled
from .eamamba import AllAroundScan, EAMambaSR, EAMambaUNet
from .mambair import MambaIR, MambaIRUNet
from .mambairv2 import MambaIRv2

__all__ = [
    "AllAroundScan",
    "EAMambaSR",
    "EAMambaUNet",
    "MambaIR",
    "MambaIRUNet",
    "MambaIRv2",
    "RestorationModel",
    "create_model",
    "list_models",
    "tiled",
]
