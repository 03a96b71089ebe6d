"""Vision state-space models in one place: importing this package registers them with timm."""
from .models import list_models

__all__ = ["list_models"]
