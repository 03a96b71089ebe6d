"""Vision state-space models in one place: importing this package registers them with timm."""

from .models import list_models
from .version import __version__

__all__ = ["__version__", "list_models"]
