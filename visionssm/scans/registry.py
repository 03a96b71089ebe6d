"""The names of the scan orders, what they need, and how names compose."""

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

OrderFn = Callable[..., Tensor]  # (height, width[, k]) -> integer tensor (routes, steps)

_NAME = re.compile(r"[a-z][a-z0-9_]*(<k>)?")


class ScanOrder(NamedTuple):
    """A registered order: the function that builds its table, and its routes (fixed, or as a function of k)."""

    fn: OrderFn
    routes: int | Callable[[int], int]


class Part(NamedTuple):
    """One term of a composed name."""

    order: ScanOrder
    k: int | None  # parameter of a name like "window7"
    flip: bool

    @property
    def routes(self) -> int:
        """Number of routes of this term."""
        return self.order.routes if isinstance(self.order.routes, int) else self.order.routes(self.k)

    def build(self, height: int, width: int) -> Tensor:
        """The term's table as its function returns it, before any `_flip`."""
        return self.order.fn(height, width) if self.k is None else self.order.fn(height, width, self.k)


_orders: dict[str, ScanOrder] = {}
_on_change: list[Callable[[], None]] = []  # caches to empty when a name gets another function


def register_scan(name: str, routes: int | Callable[[int], int]) -> Callable[[OrderFn], OrderFn]:
    """Decorator that gives a scan order a name.

    The function takes (height, width) and returns an integer tensor (routes, steps): the token `row * width + column`
    that each route reads at each step, or -1 for a step that reads a zero token. It must depend on its arguments alone.
    A name that ends in `<k>` ("window<k>") stands for a family of orders ("window2", "window7"): its function takes k
    as the third argument, and `routes` may be a function of k.

    Args:
        name: Lower-case letters, digits and underscores. `+` and the ending `_flip` are kept for composing names.
        routes: Number of routes; every route of a model has its own parameters.

    Raises:
        ValueError: the name is malformed, or taken by another function.
    """
    if not _NAME.fullmatch(name) or name.removesuffix("<k>").endswith("_flip"):
        raise ValueError(
            f"cannot register scan order {name!r}: a name has lower-case letters, digits and underscores, optionally a "
            f"final <k>, and does not end in _flip (the reversed routes of every order already have that name)"
        )
    if isinstance(routes, int) and routes < 1:
        raise ValueError(f"scan order {name!r} declares {routes} routes; it needs at least 1")

    def register(fn: OrderFn) -> OrderFn:
        known = _orders.get(name)
        # running the same definition again, as notebooks do, is no clash
        if known and (known.fn.__module__, known.fn.__qualname__) != (fn.__module__, fn.__qualname__):
            raise ValueError(
                f"scan order {name!r} is already registered by {known.fn.__module__}.{known.fn.__qualname__}"
            )
        _orders[name] = ScanOrder(fn, routes)
        for forget in _on_change:
            forget()
        return fn

    return register


def on_change(forget: Callable[[], None]) -> None:
    """Have `forget` called whenever a name is registered."""
    _on_change.append(forget)


def list_scans(aliases: bool = True) -> list[str]:
    """Registered names, sorted; `<k>` stands for a number.

    Args:
        aliases: Also list further names of an order; without them each has the name that it was given first.
    """
    if aliases:
        return sorted(_orders)
    return sorted({order.fn: name for name, order in reversed(_orders.items())}.values())


def check_scan(name: str) -> None:
    """Check that a name, composed or not, stands for a scan order.

    Raises:
        TypeError: the name is not a string.
        ValueError: a part of it is unknown; the message offers the nearest known name.
    """
    parse_scan(name)


def num_routes(name: str) -> int:
    """Number of routes of a scan order, known without building its table.

    Raises:
        TypeError: the name is not a string.
        ValueError: a part of it is unknown.
    """
    return sum(part.routes for part in parse_scan(name))


def parse_scan(name: str) -> tuple[Part, ...]:
    """The parts of a name: `"raster+window7_flip"` has two."""
    if not isinstance(name, str):
        raise TypeError(f"a scan order is given by name, like 'cross'; found {type(name).__name__}: {name!r}")
    return tuple(_parse_part(part, name) for part in name.split("+"))


def _parse_part(part: str, whole: str) -> Part:
    base = part.removesuffix("_flip")
    flip = base != part
    if base in _orders and not base.endswith("<k>"):
        return Part(_orders[base], None, flip)
    match = re.fullmatch(r"(.*[^0-9])([1-9][0-9]*)", base)
    if match and f"{match[1]}<k>" in _orders:
        return Part(_orders[f"{match[1]}<k>"], int(match[2]), flip)
    raise ValueError(_unknown(base, whole))


def _unknown(base: str, whole: str) -> str:
    where = f"scan order {base!r}" + (f" in {whole!r}" if base != whole else "")
    stem, number = re.fullmatch(r"(.*?)([0-9]*|<k>)", base).groups()
    if f"{stem}<k>" in _orders:
        return f"{where} needs a whole number from 1 on after {stem!r}, as in '{stem}2'"
    names = {known.removesuffix("<k>"): known for known in _orders}
    near = difflib.get_close_matches(stem.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {names[near[0]].replace('<k>', number or '<k>')!r}? " if near else ""
    return f"unknown {where}; {hint}known: {', '.join(list_scans())} (joined by '+', reversed by '_flip')"
