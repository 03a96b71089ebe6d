"""The mathematics: functions on tensors, no modules."""

from .causal_conv1d import causal_conv1d
from .deformable_sampling import deformable_sampling
from .selective_scan import available_backends, backend_unavailable, selective_scan
from .ssd import causal_ssd, noncausal_ssd, quasi_separable_ssd, read_state, weighted_state
from .tables import TableFacts, remember_table, table_facts
from .tree_scan import spanning_tree, tree_scan
from .wavefront_scan import wavefront_scan

__all__ = [
    "TableFacts",
    "available_backends",
    "backend_unavailable",
    "causal_conv1d",
    "causal_ssd",
    "deformable_sampling",
    "noncausal_ssd",
    "quasi_separable_ssd",
    "read_state",
    "remember_table",
    "selective_scan",
    "spanning_tree",
    "table_facts",
    "tree_scan",
    "wavefront_scan",
    "weighted_state",
]
