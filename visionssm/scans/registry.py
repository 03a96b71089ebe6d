"""The names of the scan orders, what they need, and how names compose."""

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .modifiers import FLIP, TURNS

OrderFn = Callable[..., Tensor]  # (height, width[, k]) -> integer tensor (routes, steps)

_NAME = re.compile(r"[a-z][a-z0-9_]*(<k>)?")
_TURN = "|".join(TURNS)
_ROUTE = r"\[(?P<route>0|[1-9][0-9]*)\]"
_TERM = re.compile(rf"(?P<base>.*?)({_ROUTE})?(?P<turns>({_TURN})*)(?P<flip>{FLIP})?", re.DOTALL)


class ScanOrder(NamedTuple):
    """A registered order: the function that builds its table, and its routes (fixed, or as a function of k)."""

    fn: OrderFn
    routes: int | Callable[[int], int]


class Part(NamedTuple):
    """One term of a composed name."""

    order: ScanOrder
    k: int | None  # parameter of a name like "window7"
    route: int | None  # the one route that "name[route]" keeps
    turns: tuple[str, ...]  # modifiers of the map, in the order in which they are applied
    flip: bool

    @property
    def order_routes(self) -> int:
        """Number of routes of the order itself."""
        if isinstance(self.order.routes, int):
            return self.order.routes
        assert self.k is not None, "an order that counts by its parameter has one"
        return self.order.routes(self.k)

    @property
    def routes(self) -> int:
        """Number of routes of this term."""
        return self.order_routes if self.route is None else 1

    def turn(self, grid: Tensor) -> Tensor:
        """The tokens of a map (height, width) as the order finds them."""
        for name in self.turns:
            grid = TURNS[name](grid)
        return grid

    def build(self, height: int, width: int) -> Tensor:
        """The order's table as its function returns it, for the sides of the turned map."""
        return self.order.fn(height, width) if self.k is None else self.order.fn(height, width, self.k)

    def place(self, table: Tensor, grid: Tensor) -> Tensor:
        """This term's routes, from the table that `build` returned and the map that `turn` returned."""
        if self.route is not None:
            table = table[self.route : self.route + 1]
        if self.turns:
            table = torch.where(table < 0, -1, grid.flatten()[table.clamp(min=0).long()])
        return table.flip(1) if self.flip else table


_orders: dict[str, ScanOrder] = {}
_on_change: list[Callable[[], None]] = []  # caches to empty when a name gets another function


def register_scan(name: str, routes: int | Callable[[int], int]) -> Callable[[OrderFn], OrderFn]:
    """Decorator that gives a scan order a name.

    The function takes (height, width) and returns an integer tensor (routes, steps): the token `row * width + column`
    that each route reads at each step, or -1 for a step that reads a zero token. It must depend on its arguments alone.
    A name that ends in `<k>` ("window<k>") stands for a family of orders ("window2", "window7"): its function takes k
    as the third argument, and `routes` may be a function of k.

    Args:
        name: Lower-case letters, digits and underscores. `+`, `[k]` and the endings `_t`, `_r90`, `_r180`, `_r270`,
            `_mirror`, `_updown` and `_flip` are kept for composing names.
        routes: Number of routes; every route of a model has its own parameters.

    Raises:
        ValueError: the name is malformed, or taken by another function.
    """
    stem = name.removesuffix("<k>")
    taken = next((ending for ending in (*TURNS, FLIP) if stem.endswith(ending)), None)
    if name.endswith("_r<k>"):
        taken = "_r90"  # "name_r90" would have two meanings
    if not _NAME.fullmatch(name) or taken:
        raise ValueError(
            f"cannot register scan order {name!r}: a name has lower-case letters, digits and underscores, optionally a "
            f"final <k>, and does not end in {', '.join(TURNS)} or {FLIP}"
            + (f" (every order already has that name with {taken})" if taken else "")
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
    term = _TERM.fullmatch(part)
    assert term is not None, "the pattern takes any text"
    base = term["base"]
    found = _find(base)
    if found is None:
        raise ValueError(_unknown(base, whole))
    route = None if term["route"] is None else int(term["route"])
    parsed = Part(*found, route, tuple(re.findall(_TURN, term["turns"])), term["flip"] is not None)
    if route is not None and route >= parsed.order_routes:
        raise ValueError(
            f"scan order {part!r} asks for route {route}, but {base!r} has {parsed.order_routes} "
            f"route{'s' if parsed.order_routes > 1 else ''}, counted from 0"
        )
    return parsed


def _find(base: str) -> tuple[ScanOrder, int | None] | None:
    """The order of a name without modifiers, and the k in it."""
    if base in _orders and not base.endswith("<k>"):
        return _orders[base], None
    match = re.fullmatch(r"(.*[^0-9])([1-9][0-9]*)", base)
    if match and f"{match[1]}<k>" in _orders:
        return _orders[f"{match[1]}<k>"], int(match[2])
    return None


def _unknown(base: str, whole: str) -> str:
    where = f"scan order {base!r}" + (f" in {whole!r}" if base != whole else "")
    ends = re.fullmatch(r"(.*?)([0-9]*|<k>)", base, re.DOTALL)
    assert ends is not None, "the pattern takes any text"
    stem, number = ends.groups()
    if f"{stem}<k>" in _orders:
        return f"{where} needs a whole number from 1 on after {stem!r}, as in '{stem}2'"
    names = {known.removesuffix("<k>"): known for known in _orders}
    near = difflib.get_close_matches(stem.lower(), names, n=1, cutoff=0.8)
    known, rest = _known_start(base)
    if known and (not near or known.startswith(near[0])):
        return f"{where}: {_bad_ending(known, rest)}"
    near = near or difflib.get_close_matches(stem.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {names[near[0]].replace('<k>', number or '<k>')!r}? " if near else ""
    return (
        f"unknown {where}; {hint}known: {', '.join(list_scans())} (joined by '+', one route by '[0]', "
        f"the map turned by {', '.join(TURNS)}, reversed by '{FLIP}')"
    )


def _known_start(base: str) -> tuple[str, str]:
    """The longest known order that a name starts with, and what follows it in `_` or `[`; two empty texts if none."""
    for end in range(len(base) - 1, 0, -1):
        if base[end] in "_[" and _find(base[:end]):
            return base[:end], base[end:]
    return "", ""


def _bad_ending(known: str, rest: str) -> str:
    rest = re.sub(rf"^{_ROUTE}", "", rest)
    endings = [f"_{ending}" for ending in rest[1:].split("_")]
    if "[" in rest or all(ending in TURNS for ending in endings):  # these stood before a well-formed [k]
        return f"one route is chosen by its number, before any modifier, as in '{known}[0]' or '{known}[0]_mirror'"
    if FLIP in endings:
        return f"{FLIP} comes last and once, as in '{known}_t{FLIP}'"
    wrong = next(ending for ending in endings if ending not in TURNS)
    near = difflib.get_close_matches(wrong, [*TURNS, FLIP], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown modifier {wrong!r} of {known!r}; {hint}known: {', '.join(TURNS)}, and {FLIP} at the end"
