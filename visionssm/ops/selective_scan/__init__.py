"""The selective scan: one public function, several implementations of one meaning."""

from . import flops as _flops  # noqa: F401  registers the formulas
from .backends import available_backends, backend_unavailable
from .operator import selective_scan

__all__ = ["available_backends", "backend_unavailable", "selective_scan"]
