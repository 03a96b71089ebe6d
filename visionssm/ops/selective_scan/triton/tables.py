"""What the kernels must know of a scan table; found once per tensor, since a launch must not read values back."""

import weakref
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ...tables import check_table
from .access import AHEAD
from .streams import Shared, capturing


class Visits(NamedTuple):
    """The rows of a by-step result (T, K) that visit each bin: index[start[bin]:start[bin + 1]], ascending."""

    start: Tensor  # (bins + 1,), int32
    index: Tensor  # int32, t * K + k


class TableUse(NamedTuple):
    """A table as the kernels read it, and how its routes visit the tokens."""

    entries: Tensor  # (K, T + AHEAD), int32, contiguous; each route's last entry goes on to the end
    padded: bool  # as in `TableFacts`
    full: bool
    repeats: bool


@dataclass
class _Known:
    order: weakref.ref
    version: int
    num_tokens: int
    use: TableUse
    entries: Shared
    visits: dict[bool, tuple[Visits, Shared]] = field(default_factory=dict)


_known: dict[int, _Known] = {}


def table_use(order: Tensor, num_tokens: int) -> TableUse:
    """Facts about `order`, remembered for as long as the tensor lives unchanged; its values are not read for it.

    Raises:
        ValueError: an entry is out of range.
    """
    return _look_up(order, num_tokens).use


def table_visits(order: Tensor, num_tokens: int, merged: bool) -> Visits:
    """The steps that visit each token, over all routes if `merged`, else with one bin per (token, route)."""
    known = _look_up(order, num_tokens)
    if merged not in known.visits:
        visits = _visits(known.use.entries[:, : order.shape[1]], num_tokens, merged)
        if capturing(order.device):
            return visits
        known.visits[merged] = visits, Shared(visits)
    visits, shared = known.visits[merged]
    shared.use()
    return visits


def _look_up(order: Tensor, num_tokens: int) -> _Known:
    version = 0 if order.is_inference() else order._version
    found = _known.get(id(order))
    if found is not None and found.order() is order and (found.version, found.num_tokens) == (version, num_tokens):
        found.entries.use()
        return found
    facts = check_table(order, num_tokens)
    # a copy in any case: what is remembered must not keep the table alive
    entries = torch.cat([order, order[:, -1:].expand(-1, AHEAD.value)], 1).to(torch.int32)
    key, remembered = id(order), _known
    reference = weakref.ref(order, lambda _: remembered.pop(key, None))
    known = _Known(reference, version, num_tokens, TableUse(entries, *facts), Shared((entries,)))
    if not capturing(order.device):  # what a graph makes holds nothing until it is replayed
        _known[key] = known
    return known


def _visits(entries: Tensor, num_tokens: int, merged: bool) -> Visits:
    routes = entries.shape[0]
    tokens = entries.T.long()  # (T, K): its flat index is the row of a by-step result
    bins = tokens if merged else tokens * routes + torch.arange(routes, device=entries.device)
    sorted_bins, index = torch.where(tokens < 0, -1, bins).flatten().sort(stable=True)
    # searched, not counted: a count would wait for the device
    edges = torch.arange(num_tokens * (1 if merged else routes) + 1, device=entries.device)
    return Visits(torch.searchsorted(sorted_bins, edges, out_int32=True), index.to(torch.int32))
