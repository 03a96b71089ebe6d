"""What the kernels must know of a scan table; found once per tensor, since a launch must not read values back."""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from ...tables import check_table


class Visits(NamedTuple):
    """The rows of a by-step result (T, K) that visit each bin: index[start[bin]:start[bin + 1]], ascending."""

    start: Tensor  # (bins + 1,), int32
    index: Tensor  # int32, t * K + k


class TableUse(NamedTuple):
    """A table as the kernels read it, and how its routes visit the tokens."""

    entries: Tensor  # (K, T), int32, contiguous
    padded: bool  # as in `TableFacts`
    full: bool
    repeats: bool


_uses: dict[int, tuple[weakref.ref, int, int, TableUse, dict[bool, Visits]]] = {}


def table_use(order: Tensor, num_tokens: int) -> TableUse:
    """Facts about `order`, remembered for as long as the tensor lives unchanged; reads the values unless remembered.

    Raises:
        ValueError: an entry is out of range.
    """
    return _look_up(order, num_tokens)[0]


def table_visits(order: Tensor, num_tokens: int, merged: bool) -> Visits:
    """The steps that visit each token, over all routes if `merged`, else with one bin per (token, route)."""
    use, known = _look_up(order, num_tokens)
    if merged not in known:
        known[merged] = _visits(use.entries, num_tokens, merged)
    return known[merged]


def _look_up(order: Tensor, num_tokens: int) -> tuple[TableUse, dict[bool, Visits]]:
    version = 0 if order.is_inference() else order._version
    found = _uses.get(id(order))
    if found is not None and found[0]() is order and found[1:3] == (version, num_tokens):
        return found[3:]
    use = TableUse(order.to(torch.int32).contiguous(), *check_table(order, num_tokens))
    known: dict[bool, Visits] = {}
    key = id(order)
    _uses[key] = (weakref.ref(order, lambda _, uses=_uses: uses.pop(key, None)), version, num_tokens, use, known)
    return use, known


def _visits(entries: Tensor, num_tokens: int, merged: bool) -> Visits:
    routes = entries.shape[0]
    tokens = entries.T.long()  # (T, K): its flat index is the row of a by-step result
    bins = tokens if merged else tokens * routes + torch.arange(routes, device=entries.device)
    sorted_bins, index = torch.where(tokens < 0, -1, bins).flatten().sort(stable=True)
    # searched, not counted: a count would wait for the device
    edges = torch.arange(num_tokens * (1 if merged else routes) + 1, device=entries.device)
    return Visits(torch.searchsorted(sorted_bins, edges, out_int32=True), index.to(torch.int32))
