"""Model families; importing this package registers every variant with timm."""
from .vmamba import VMamba

__all__ = ["VMamba"]
