"""Facts about a scan table, found once per tensor: a launch must not read the table's values back."""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor


class TableFacts(NamedTuple):
    """How the routes of a scan table visit the tokens."""

    padded: bool  # has entries of -1
    full: bool  # every route visits every token
    repeats: bool  # some route visits a token twice


_facts: dict[int, tuple[weakref.ref, int, int, TableFacts]] = {}


def table_facts(order: Tensor, num_tokens: int) -> TableFacts:
    """Find the facts about a table by reading its values: on a GPU this waits for the device.

    Args:
        order: Integer (routes, steps): the token read at each step, -1 for a zero token.
        num_tokens: Number of tokens L.

    Raises:
        ValueError: an entry does not lie in [-1, num_tokens).
    """
    low, high = (int(v) for v in torch.aminmax(order))
    if low < -1 or high >= num_tokens:
        raise ValueError(
            f"order has entries from {low} to {high}; with {num_tokens} tokens they must lie in "
            f"[-1, {num_tokens - 1}] (-1 reads a zero token)"
        )
    routes, bins = order.shape[0], num_tokens + 1
    entries = order.long() + 1 + torch.arange(routes, device=order.device)[:, None] * bins
    visits = torch.bincount(entries.flatten(), minlength=routes * bins).view(routes, bins)[:, 1:]
    least, most = (int(v) for v in torch.aminmax(visits))
    return TableFacts(low < 0, least > 0, most > 1)


def check_table(order: Tensor, num_tokens: int) -> TableFacts:
    """`table_facts`, remembered for as long as the tensor lives unchanged."""
    known = _facts.get(id(order))
    if known is not None and known[0]() is order and known[1:3] == (_version(order), num_tokens):
        return known[3]
    return remember_table(order, num_tokens, table_facts(order, num_tokens))


def remember_table(order: Tensor, num_tokens: int, facts: TableFacts) -> TableFacts:
    """Have the operators take `facts` as known for as long as the tensor lives unchanged, without reading its values.

    For a table made on the CPU and copied to a GPU, where reading it would wait for the device, and for tables without
    values (fake tensors).

    Args:
        order: The tensor that will be given to an operator as `order`.
        num_tokens: Number of tokens L.
        facts: What `table_facts` found in a table of the same values.
    """
    key, remembered = id(order), _facts  # the callback holds the dictionary itself: at shutdown the module may be empty
    forgotten = weakref.ref(order, lambda _: remembered.pop(key, None))  # type: ignore[arg-type]
    _facts[key] = (forgotten, _version(order), num_tokens, facts)
    return facts


def _version(order: Tensor) -> int:
    return 0 if order.is_inference() else order._version
