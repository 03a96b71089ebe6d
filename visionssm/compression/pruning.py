"""Leaving out tokens between blocks (ToP-ViM, arXiv:2409.18962): the parts of plain models' argument `pruning`."""

from ..layers.token_pruning import aligned_scan, select_tokens, skipped_tokens, token_scores

__all__ = ["aligned_scan", "select_tokens", "skipped_tokens", "token_scores"]
