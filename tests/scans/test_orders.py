"""What every order promises, on every size of map."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visionssm.scans import (
    direction_table,
    insert_token,
    inverse_table,
    list_scans,
    modifiers,
    num_routes,
    scan_table,
)

SIZES = {"height": st.integers(1, 17), "width": st.integers(1, 19)}
PERMUTATIONS = [
    "bidirectional",
    "continuous",
    "cross",
    "diagonal",
    "gray",
    "hilbert",
    "raster",
    "snake",
    "spiral",
    "vertical",
    "zigzag",
    "zorder",
]
SEEDED = ["shuffle<k>"]
PADDED = ["local<k>", "window<k>"]
PARTITIONS = ["atrous<k>", "skip<k>"]
REPEATED = {"ms2d_low": 3}  # visits of each token
TURNS = {  # the map as read, by coordinates: turned[i][j] = map[row][column], for a map of h rows and w columns
    "_t": lambda i, j, h, w: (j, i),
    "_r90": lambda i, j, h, w: (j, w - 1 - i),
    "_r180": lambda i, j, h, w: (h - 1 - i, w - 1 - j),
    "_r270": lambda i, j, h, w: (h - 1 - j, i),
    "_mirror": lambda i, j, h, w: (i, w - 1 - j),
    "_updown": lambda i, j, h, w: (h - 1 - i, j),
}
SWAPS_SIDES = ("_t", "_r90", "_r270")


def test_every_order_is_checked_below():
    known = {*PERMUTATIONS, *SEEDED, *PADDED, *PARTITIONS, *REPEATED}
    assert set(list_scans()) >= known
    extra = set(list_scans()) - known
    assert not extra, f"add {sorted(extra)} to one of the lists of this file"


def tokens(height, width):
    return torch.arange(height * width, dtype=torch.int32)


def check_inverse(name, height, width):
    """Step and token name each other, and whatever has no partner is -1."""
    table, inverse = scan_table(name, height, width), inverse_table(name, height, width)
    assert inverse.shape == (table.shape[0], height * width)
    for route, back in zip(table.tolist(), inverse.tolist(), strict=True):
        assert {(t, i) for t, i in enumerate(route) if i >= 0} == {(t, i) for i, t in enumerate(back) if t >= 0}


@pytest.mark.parametrize("flip", ["", "_flip"])
@pytest.mark.parametrize("name", PERMUTATIONS)
@given(**SIZES)
def test_permutation(name, flip, height, width):
    table = scan_table(name + flip, height, width)
    assert table.dtype == torch.int32
    assert table.shape == (num_routes(name), height * width)
    for route in table:
        assert torch.equal(route.sort().values, tokens(height, width))
    check_inverse(name + flip, height, width)


@pytest.mark.parametrize("name", SEEDED)
@given(**SIZES, k=st.integers(1, 9))
def test_seeded_permutation(name, height, width, k):
    table = scan_table(name.replace("<k>", str(k)), height, width)
    assert torch.equal(table[0].sort().values, tokens(height, width))
    check_inverse(name.replace("<k>", str(k)), height, width)


@pytest.mark.parametrize("flip", ["", "_flip"])
@pytest.mark.parametrize("name", PADDED)
@given(**SIZES, k=st.integers(1, 9))
def test_padded_permutation(name, flip, height, width, k):
    name = name.replace("<k>", str(k)) + flip
    table = scan_table(name, height, width)
    assert table.shape == (1, -(-height // k) * -(-width // k) * k * k)
    assert torch.equal(table[table >= 0].sort().values, tokens(height, width))
    # steps of one window of k x k tokens follow each other
    for window in table.view(-1, k * k):
        inside = window[window >= 0].long()
        assert len(set(zip((inside // width // k).tolist(), (inside % width // k).tolist(), strict=True))) == 1
    check_inverse(name, height, width)


@pytest.mark.parametrize("name", PARTITIONS)
@given(**SIZES, k=st.integers(1, 4))
def test_partition(name, height, width, k):
    name = name.replace("<k>", str(k))
    table = scan_table(name, height, width)
    assert table.shape == (k * k, -(-height // k) * -(-width // k)) == (num_routes(name), table.shape[1])
    assert torch.equal(table[table >= 0].sort().values, tokens(height, width))
    for route in table:
        inside = route[route >= 0].long()
        assert len(set(zip((inside // width % k).tolist(), (inside % width % k).tolist(), strict=True))) <= 1
    check_inverse(name, height, width)


@pytest.mark.parametrize("name", REPEATED)
@given(**SIZES)
def test_repeated(name, height, width):
    table = scan_table(name, height, width)
    visits = table.flatten().bincount(minlength=height * width)
    assert (visits == REPEATED[name]).all()
    with pytest.raises(ValueError, match="more than once"):
        inverse_table(name, height, width)


def test_every_modifier_is_checked_below():
    assert set(TURNS) == set(modifiers.TURNS)


@given(
    **SIZES,
    name=st.sampled_from(
        ["snake", "hilbert", "zigzag", "spiral", "diagonal", "gray", "window3", "atrous2", "ms2d_low"]
    ),
    turn=st.sampled_from(sorted(TURNS)),
)
def test_modifier_reads_the_turned_map(name, turn, height, width):
    sides = (width, height) if turn in SWAPS_SIDES else (height, width)
    expected = []
    for route in scan_table(name, *sides).tolist():
        steps = [token if token < 0 else TURNS[turn](*divmod(token, sides[1]), height, width) for token in route]
        expected.append([step if step == -1 else step[0] * width + step[1] for step in steps])
    assert scan_table(name + turn, height, width).tolist() == expected


@given(
    **SIZES,
    name=st.sampled_from(["snake[1]", "zigzag[4]", "hilbert", "window2", "atrous3"]),
    turns=st.lists(st.sampled_from(sorted(TURNS)), max_size=4),
)
def test_chained_modifiers(name, turns, height, width):
    """Left to right on the map; so the tokens are renumbered from right to left."""
    sides = [(height, width)]
    for turn in turns:
        sides.append(sides[-1][::-1] if turn in SWAPS_SIDES else sides[-1])
    table = scan_table(name, *sides[-1])
    for turn, size in zip(reversed(turns), reversed(sides[:-1]), strict=True):
        grid = scan_table("raster" + turn, *size)[0]
        table = torch.where(table < 0, -1, grid[table.clamp(min=0)])
    assert torch.equal(scan_table("".join([name, *turns]), height, width), table)
    assert torch.equal(scan_table("".join([name, *turns, "_flip"]), height, width), table.flip(1))


@pytest.mark.parametrize(
    ("chain", "same"),
    [
        ("_r90_t", "_mirror"),
        ("_t_r90", "_updown"),
        ("_mirror_t", "_r90"),
        ("_r90_r90", "_r180"),
        ("_r180_r90", "_r270"),
        ("_mirror_updown", "_r180"),
        ("_t_t", ""),
        ("_r270_r90", ""),
    ],
)
@given(**SIZES)
def test_modifiers_form_the_group_of_the_square(chain, same, height, width):
    for name in ("hilbert", "snake[0]", "window3"):
        assert torch.equal(scan_table(name + chain, height, width), scan_table(name + same, height, width))


@given(**SIZES)
def test_known_equal_orders(height, width):
    for name, same in [
        ("raster_t", "vertical"),
        ("raster_r180", "raster_flip"),
        ("snake[2]", "snake[0]_t"),
        ("zigzag[1]", "zigzag[0]_t"),
        ("zigzag[2]+zigzag[4]+zigzag[6]", "zigzag[0]_mirror+zigzag[0]_updown+zigzag[0]_r180"),
        ("cross", "raster+raster_t+raster_flip+raster_t_flip"),
    ]:
        assert torch.equal(scan_table(name, height, width), scan_table(same, height, width)), name


@pytest.mark.parametrize("name", ["cross", "zigzag", "snake_mirror", "atrous2", "atrous3_t_flip"])
@given(**SIZES)
def test_one_route(name, height, width):
    base, *turns = name.split("_")
    for route in range(num_routes(name)):
        one = "_".join([f"{base}[{route}]", *turns])
        assert num_routes(one) == 1
        assert torch.equal(scan_table(one, height, width)[0], scan_table(name, height, width)[route])


@pytest.mark.parametrize("name", ["snake", "hilbert", "spiral"])
@given(**SIZES)
def test_every_step_is_to_a_neighbour(name, height, width):
    codes = direction_table(name, height, width)
    assert (codes[:, 0] == 0).all()
    assert (codes[:, 1:] > 0).all()


@given(**SIZES)
def test_zigzag_has_eight_forms_of_diagonal_steps(height, width):
    table = scan_table("zigzag", height, width).long()
    row, column = table // width, table % width
    assert torch.maximum(row.diff().abs(), column.diff().abs()).le(1).all()  # a step to one of the eight neighbours
    if min(height, width) > 1:
        assert len({tuple(route) for route in table.tolist()}) == 8
    corners = torch.tensor(
        [0, 0, width - 1, width - 1, (height - 1) * width, (height - 1) * width, height * width - 1, height * width - 1]
    )
    assert torch.equal(table[:, 0], corners)


def test_zigzag_starts_as_jpeg():
    assert scan_table("zigzag", 8, 8)[0, :12].tolist() == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25]


def test_hilbert_on_a_square_fills_quadrant_after_quadrant():
    assert scan_table("hilbert", 4, 4).tolist() == [[0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]]
    for side in (8, 16, 32):
        table = scan_table("hilbert", side, side)[0].long()
        half = side // 2
        for quadrant in table.view(4, -1):
            assert (
                len(set(zip((quadrant // side // half).tolist(), (quadrant % side // half).tolist(), strict=True))) == 1
            )


def test_zorder_small():
    assert scan_table("zorder", 3, 4).tolist() == [[0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]]


def test_diagonal_small():
    assert scan_table("diagonal", 3, 4).tolist() == [[0, 1, 4, 2, 5, 8, 3, 6, 9, 7, 10, 11]]


def test_gray_small():
    assert scan_table("gray", 2, 4).tolist() == [[0, 1, 5, 4, 2, 3, 7, 6]]
    assert scan_table("gray", 3, 3).tolist() == [[0, 1, 4, 3, 2, 5, 8, 6, 7]]


def test_modifier_small():
    assert scan_table("raster_r90", 2, 3).tolist() == [[2, 5, 1, 4, 0, 3]]  # counter-clockwise
    assert scan_table("raster_r270", 2, 3).tolist() == [[3, 0, 4, 1, 5, 2]]
    assert scan_table("window2_mirror", 2, 3).tolist() == [[2, 1, 5, 4, 0, -1, 3, -1]]


def test_spiral_small():
    assert scan_table("spiral", 3, 4).tolist() == [[0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]]


def test_directions_of_jumps_and_zero_tokens_are_0():
    # one column: rows and columns must not be confused
    assert direction_table("raster", 3, 1).tolist() == [[0, 4, 4]]
    assert direction_table("raster", 2, 3).tolist() == [[0, 1, 1, 0, 1, 1]]
    assert scan_table("window2", 2, 3).tolist() == [[0, 1, 3, 4, 2, -1, 5, -1]]
    assert direction_table("window2", 2, 3).tolist() == [[0, 1, 0, 1, 0, 0, 0, 0]]


@given(**SIZES, name=st.sampled_from(["raster", "cross", "window2", "window7_flip", "atrous2", "raster+window3"]))
def test_insert_token(name, height, width):
    num_tokens = height * width
    table = scan_table(name, height, width)
    middle = num_tokens // 2
    if table.shape[1] < middle:  # sub-lattices are short
        with pytest.raises(ValueError, match=f"at least {middle} steps"):
            insert_token(table, num_tokens)
        return
    longer = insert_token(table, num_tokens)
    assert torch.equal(longer, scan_table(name, height, width, middle_token=True))
    assert (longer[:, middle] == middle).all()
    rest = torch.cat([longer[:, :middle], longer[:, middle + 1 :]], dim=1)
    assert not (rest == middle).any()
    assert torch.equal(rest - (rest > middle).int(), table)


@given(**SIZES)
def test_inverse_with_a_token(height, width):
    table = scan_table("window3+raster_flip", height, width, middle_token=True).long()
    inverse = inverse_table("window3+raster_flip", height, width, middle_token=True).long()
    assert inverse.shape == (2, height * width + 1)
    assert torch.equal(table.gather(1, inverse), torch.arange(height * width + 1).expand(2, -1))
