"""The two-dimensional recurrence over anti-diagonals: one public function, several implementations."""

from .operator import wavefront_scan

__all__ = ["wavefront_scan"]
