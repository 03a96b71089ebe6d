"""Modifiers of a scan order's name that turn the map before it is read.

Each takes the tokens of a map (rows, columns) and returns them as the order finds them. `register_scan` keeps their
names free.
"""

from collections.abc import Callable

from torch import Tensor

TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "_t": lambda grid: grid.T,
    "_r90": lambda grid: grid.rot90(),  # counter-clockwise: turned[i][j] = grid[j][columns - 1 - i]
    "_r180": lambda grid: grid.flip(0, 1),
    "_r270": lambda grid: grid.rot90(-1),
    "_mirror": lambda grid: grid.flip(1),  # left and right
    "_updown": lambda grid: grid.flip(0),
}
FLIP = "_flip"  # reverses the steps; always the last
