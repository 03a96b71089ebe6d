"""State-space duality: scans with one decay per head and step, computed as matrix products."""

from .products import causal_ssd, noncausal_ssd, quasi_separable_ssd, read_state, weighted_state

__all__ = ["causal_ssd", "noncausal_ssd", "quasi_separable_ssd", "read_state", "weighted_state"]
