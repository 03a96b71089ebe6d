"""Index tables of the scan orders, built once for each (name, size, device), and the tables derived from them.

A mixer asks for its table in `forward`, with the height and width that it finds there. Compilers see a constant:
`torch.compile` and `torch.export` store the table in the graph (of one height and width), `torch.fx` stores the call.
"""

import contextlib
import operator
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Proxy
from torch.utils._python_dispatch import _disable_current_modes

from ..ops import remember_table, table_facts
from ..ops.tables import check_table
from .registry import on_change, parse_scan
from .tokens import insert_at, token_positions

# a table of 4 routes on a 200 x 334 map takes 1 MiB, those of all four stages 1.4: enough for some 180 image sizes
_CACHE_BYTES = 256 * 2**20
_caches: list["_TableCache"] = []


def scan_table(
    name: str,
    height: int,
    width: int,
    device: torch.device | str | None = None,
    middle_token: bool = False,
    extra_tokens: tuple[int, str] | None = None,
) -> Tensor:
    """Table of a scan order on a map: the token that each route reads at each step.

    The same tensor object is returned for the same arguments while it stays among the last used, of 256 MiB together;
    never write to it. The operators know it without reading it on its device.
    A route that is shorter than the longest ends in entries of -1.

    Args:
        name: Registered name; names are joined by `+`, `[k]` after one keeps its route k, `_t`, `_r90`, `_r180`,
            `_r270`, `_mirror` and `_updown` turn the map before it is read (left to right), and a final `_flip`
            reverses the steps.
        height: Rows of the map.
        width: Columns of the map.
        device: Where the table lies; None is the CPU.
        middle_token: Also visit a class token in the middle, see `insert_token`.
        extra_tokens: Also visit so many tokens at such a place, see `token_positions`; each is read at its own step.

    Returns:
        int32 (routes, steps); entries are `row * width + column`, or -1 for a step that reads a zero token.

    Raises:
        TypeError: height or width is not a whole number, or the order's function returned something else than integers.
        ValueError: the name is unknown, the size is empty, or the order's function returned a bad table.
    """
    if _is_traced(height, width, device):
        return _leave_call(scan_table, name, height, width, device, middle_token, extra_tokens)
    extra = extra_tokens or (int(middle_token), "middle")
    return _scan_table(name, operator.index(height), operator.index(width), device, extra)


def shuffled_table(
    name: str,
    height: int,
    width: int,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`scan_table` of an order, and one more route: a random permutation of the tokens, drawn at every call.

    Args:
        name: As for `scan_table`.
        height: Rows of the map.
        width: Columns of the map.
        device: Where the table lies; None is the CPU.
        generator: Draws the permutation; PyTorch's own if None.

    Returns:
        int32 (routes + 1, steps); shorter routes end in entries of -1.

    Raises:
        TypeError: as `scan_table`.
        ValueError: as `scan_table`.
    """
    if _is_traced(height, width, device):
        return _leave_call(shuffled_table, name, height, width, device, generator)
    table, tokens = scan_table(name, height, width, device), height * width
    drawn_on = table.device if generator is None else generator.device
    shuffled = torch.randperm(tokens, generator=generator, device=drawn_on, dtype=torch.int32).to(table.device)
    steps = max(table.shape[1], tokens)
    routes = [F.pad(r, (0, steps - r.shape[1]), value=-1) for r in (table, shuffled[None])]
    out = torch.cat(routes)
    if not torch.compiler.is_compiling():
        # known since the order's table was placed; a permutation changes nothing about them
        facts = check_table(table, tokens)
        remember_table(out, tokens, facts._replace(padded=facts.padded or table.shape[1] != tokens))
    return out


def inverse_table(
    name: str,
    height: int,
    width: int,
    device: torch.device | str | None = None,
    middle_token: bool = False,
) -> Tensor:
    """Inverse of `scan_table`: the step at which each route reads each token. Arguments and caching as there.

    Returns:
        int32 (routes, tokens); -1 where a route does not visit the token.

    Raises:
        TypeError: as `scan_table`.
        ValueError: as `scan_table`, or a route visits a token more than once.
    """
    if _is_traced(height, width, device):
        return _leave_call(inverse_table, name, height, width, device, middle_token)
    return _inverse_table(name, operator.index(height), operator.index(width), device, (int(middle_token), "middle"))


def direction_table(name: str, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """`direction_codes` of a scan order on a map. Arguments, caching and errors as for `scan_table`.

    Returns:
        int32 (routes, steps).
    """
    if _is_traced(height, width, device):
        return _leave_call(direction_table, name, height, width, device)
    return _direction_table(name, operator.index(height), operator.index(width), device)


def direction_codes(table: Tensor, width: int) -> Tensor:
    """Codes of the move that leads into each step: 1 right, 2 left, 3 up, 4 down; 0 at the start, after a jump, and
    before or after a zero token (PlainMamba, arXiv:2403.17695, section 3.2).

    Args:
        table: Integer (routes, steps), see `scan_table`.
        width: Columns of the map.

    Returns:
        int32 (routes, steps).
    """
    row, column = table.div(width, rounding_mode="floor"), table.remainder(width)
    down, right = row.diff(dim=1), column.diff(dim=1)
    codes = torch.zeros_like(table, dtype=torch.int32)
    step = codes[:, 1:]
    step[(down == 0) & (right == 1)] = 1
    step[(down == 0) & (right == -1)] = 2
    step[(down == -1) & (right == 0)] = 3
    step[(down == 1) & (right == 0)] = 4
    step[(table[:, 1:] < 0) | (table[:, :-1] < 0)] = 0
    return codes


def _is_traced(*values) -> bool:
    return any(isinstance(value, Proxy) for value in values)


def _leave_call(fn: Callable[..., Tensor], *args) -> Any:
    """Keep the call in the graph that torch.fx is tracing: the table depends on the size at run time."""
    tracer = next(arg.tracer for arg in args if isinstance(arg, Proxy))
    return tracer.create_proxy("call_function", fn, args, {})


class _TableCache:
    """Tables by the arguments they are built from; those unused longest go when all take more than so many bytes."""

    def __init__(self, build: Callable[..., Tensor]) -> None:
        self.build = build
        self.tables: OrderedDict[tuple, Tensor] = OrderedDict()
        self.bytes = 0
        self.lock = threading.Lock()

    def __call__(self, *key) -> Tensor:
        with self.lock:
            if key in self.tables:
                self.tables.move_to_end(key)
                return self.tables[key]
        table = self.build(*key)
        with self.lock:
            if key not in self.tables:  # nor built by another thread meanwhile
                self.tables[key] = table
                self.bytes += _weight(table)
                while self.bytes > _CACHE_BYTES and len(self.tables) > 1:
                    self.bytes -= _weight(self.tables.popitem(last=False)[1])
            return self.tables[key]

    def clear(self) -> None:
        with self.lock:
            self.tables.clear()
            self.bytes = 0


def _weight(table: Tensor) -> int:
    return max(table.nbytes, 4096)  # a small table is still an object and an allocation


class _Holder:
    """Tables that compiled graphs read, each under an attribute of its own."""


_compiled = _Holder()


def _cached_constant(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cache a function that builds a table, and let torch.compile take its result as a given tensor of fixed size."""
    cached = _TableCache(build)
    on_change(cached.clear)
    _caches.append(cached)

    @torch.compiler.assume_constant_result
    def hold(name: str, *key) -> str:
        spelled = name.replace("+", "_PLUS_").replace("[", "_ROUTE_").replace("]", "")
        label = "_".join(map(str, (build.__name__, spelled, *key)))
        label = re.sub(r"\W", "_", label)  # an identifier; names of orders have no capitals
        setattr(_compiled, label, cached(name, *key))
        return label

    def table(name: str, height: int, width: int, device: torch.device | str | None, *args) -> Tensor:
        device = torch.device("cpu" if device is None else device)
        if torch.compiler.is_dynamo_compiling():
            return getattr(_compiled, hold(name, height, width, device, *args))
        return cached(name, height, width, device, *args)

    table.__name__ = build.__name__
    return table


@contextlib.contextmanager
def _plain_tensors() -> Iterator[None]:
    """Make ordinary CPU tensors whatever the caller does: they outlive fake and inference modes, and meta devices."""
    with torch.device("cpu"), torch.inference_mode(False), _disable_current_modes():
        yield


def clear_tables() -> None:
    """Forget all tables that were built."""
    for cached in _caches:
        cached.clear()


@contextlib.contextmanager
def placing_tables(place: Callable[[Tensor, torch.device], Tensor]) -> Iterator[None]:
    """Have tables put on their devices by a function of one's own for a time, with empty caches before and after.

    Args:
        place: From a table on the CPU (int32, contiguous) and a device, the tensor to be returned for it, of the same
            shape and dtype: a fake one on a device that is not there, say.
    """
    global _place
    before, _place = _place, place  # type: ignore[assignment]
    clear_tables()
    try:
        yield
    finally:
        _place = before
        clear_tables()


def _place(table: Tensor, device: torch.device) -> Tensor:
    return table.to(device, non_blocking=True)


def _placed(table: Tensor, device: torch.device, num_tokens: int | None = None) -> Tensor:
    """A table made on the CPU, int32 on its device; with `num_tokens` an order, which the operators then know."""
    table = table.to(torch.int32).contiguous()
    placed = _place(table, device)
    if num_tokens is not None:
        remember_table(placed, num_tokens, table_facts(table, num_tokens))
    return placed


@_cached_constant
def _scan_table(name: str, height: int, width: int, device: torch.device, extra: tuple[int, str]) -> Tensor:
    if height < 1 or width < 1:
        raise ValueError(f"scan order {name!r} needs a map of at least 1 x 1, found {height} x {width}")
    with _plain_tensors():
        parts = []
        for part in parse_scan(name):
            grid = part.turn(torch.arange(height * width).view(height, width))
            table = part.build(*grid.shape)
            _check_table(table, part.order_routes, name, *grid.shape)
            parts.append(part.place(table, grid))
        steps = max(table.shape[1] for table in parts)
        table = torch.cat([F.pad(table, (0, steps - table.shape[1]), value=-1) for table in parts])
        table = insert_at(table, token_positions(height * width, *extra))
        return _placed(table, device, height * width + extra[0])


@_cached_constant
def _inverse_table(name: str, height: int, width: int, device: torch.device, extra: tuple[int, str]) -> Tensor:
    with _plain_tensors():
        table = _scan_table(name, height, width, None, extra).long()
        routes, steps = table.shape
        num_tokens = height * width + extra[0]
        # steps that read a zero token write to one extra column, which is cut off
        column = torch.where(table < 0, num_tokens, table)
        visits = torch.zeros(routes, num_tokens + 1, dtype=torch.int64)
        visits.scatter_add_(1, column, torch.ones_like(column))
        if visits[:, :num_tokens].max() > 1:
            route, token = (int(v) for v in (visits[:, :num_tokens] > 1).nonzero()[0])
            raise ValueError(
                f"scan order {name!r} has no inverse on {height} x {width}: route {route} visits token "
                f"{token} more than once"
            )
        inverse = torch.full((routes, num_tokens + 1), -1)
        inverse.scatter_(1, column, torch.arange(steps).expand(routes, -1))
        return _placed(inverse[:, :num_tokens], device)


@_cached_constant
def _direction_table(name: str, height: int, width: int, device: torch.device) -> Tensor:
    with _plain_tensors():
        return _placed(direction_codes(_scan_table(name, height, width, None, (0, "middle")), width), device)


def _check_table(table: Tensor, routes: int, name: str, height: int, width: int) -> None:
    where = f"the function of scan order {name!r} returned, for {height} x {width},"
    if not isinstance(table, Tensor) or table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
        found = f"a tensor of {table.dtype}" if isinstance(table, Tensor) else f"{type(table).__name__}"
        raise TypeError(f"{where} {found}; expected a tensor of integers (routes, steps)")
    if table.ndim != 2 or table.shape[0] != routes or table.shape[1] == 0:
        raise ValueError(f"{where} shape {tuple(table.shape)}; expected (routes, steps) = ({routes}, at least 1)")
    low, high = (int(v) for v in table.aminmax())
    if low < -1 or high >= height * width:
        raise ValueError(f"{where} entries from {low} to {high}; they must lie in [-1, {height * width - 1}]")
