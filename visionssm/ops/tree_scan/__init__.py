"""Propagation along spanning trees of the pixel grid: the tree, and the scan over it."""

from .operator import tree_scan
from .spanning_tree import spanning_tree

__all__ = ["spanning_tree", "tree_scan"]
