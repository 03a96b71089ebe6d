"""Vision state-space models in one place: importing this package registers them with timm."""
from . import models

__all__ = ["models"]
