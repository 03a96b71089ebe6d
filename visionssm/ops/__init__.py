"""The mathematics: functions on tensors, no modules."""

from .causal_conv1d import causal_conv1d
from .selective_scan import available_backends, selective_scan
from .tree_scan import spanning_tree, tree_scan
from .wavefront_scan import wavefront_scan

__all__ = ["available_backends", "causal_conv1d", "selective_scan", "spanning_tree", "tree_scan", "wavefront_scan"]
