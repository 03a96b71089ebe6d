"""Facts about a scan table, looked up once per tensor: a launch must not read the table's values back."""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor


class TableFacts(NamedTuple):
    padded: bool  # has entries of -1


_facts: dict[int, tuple[weakref.ref, int, int, TableFacts]] = {}


def check_table(order: Tensor, num_tokens: int) -> TableFacts:
    """Check that every entry of `order` lies in [-1, num_tokens); remembered for as long as the tensor lives unchanged.

    Raises:
        ValueError: an entry is out of range.
    """
    key = id(order)
    version = 0 if order.is_inference() else order._version
    known = _facts.get(key)
    if known is not None and known[0]() is order and known[1:3] == (version, num_tokens):
        return known[3]
    low, high = (int(v) for v in torch.aminmax(order))
    if low < -1 or high >= num_tokens:
        raise ValueError(
            f"order has entries from {low} to {high}; with {num_tokens} tokens they must lie in "
            f"[-1, {num_tokens - 1}] (-1 reads a zero token)"
        )
    return remember_table(order, num_tokens, TableFacts(padded=low < 0))


def remember_table(order: Tensor, num_tokens: int, facts: TableFacts) -> TableFacts:
    """Have `check_table` return these facts for as long as the tensor lives unchanged; for tables without values."""
    key, remembered = id(order), _facts  # the callback holds the dictionary itself: at shutdown the module may be empty
    version = 0 if order.is_inference() else order._version
    _facts[key] = (weakref.ref(order, lambda _: remembered.pop(key, None)), version, num_tokens, facts)  # type: ignore
    return facts
