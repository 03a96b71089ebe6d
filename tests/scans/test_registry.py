"""Names: registering, composing, errors; and the cache of tables."""

import pytest
import torch

from visionssm.ops import tables as operator_tables
from visionssm.scans import (
    check_scan,
    clear_tables,
    direction_table,
    inverse_table,
    list_scans,
    modifiers,
    num_routes,
    placing_tables,
    register_scan,
    registry,
    scan_table,
    tables,
)


@pytest.fixture
def clean_registry(monkeypatch):
    """Forget what a test registers."""
    monkeypatch.setattr(registry, "_orders", dict(registry._orders))


@pytest.mark.parametrize(
    ("name", "routes"),
    [
        ("raster", 1),
        ("bidirectional", 2),
        ("vertical", 1),
        ("cross", 4),
        ("window7", 1),
        ("local2_flip", 1),
        ("snake", 4),
        ("continuous", 4),
        ("atrous2", 4),
        ("skip3", 9),
        ("zigzag", 8),
        ("hilbert", 1),
        ("zorder", 1),
        ("spiral", 1),
        ("diagonal", 1),
        ("gray", 1),
        ("ms2d_low", 1),
        ("cross_t", 4),
        ("zigzag[7]", 1),
        ("atrous3[8]_r90_flip", 1),
        ("snake_mirror_t+snake[3]_updown", 5),
        ("raster+vertical_flip+window2+window7_flip", 4),
        ("cross+cross", 8),
        ("atrous2+atrous3_flip", 13),
    ],
)
def test_number_of_routes(name, routes):
    check_scan(name)
    assert num_routes(name) == routes
    assert scan_table(name, 3, 5).shape[0] == routes


def test_aliases():
    assert set(list_scans()) - set(list_scans(aliases=False)) == {"continuous", "local<k>", "skip<k>"}
    for name, alias in [("snake", "continuous"), ("window3", "local3"), ("atrous3", "skip3")]:
        assert torch.equal(scan_table(name, 4, 7), scan_table(alias, 4, 7))


def test_composition_keeps_order_and_pads_at_the_end():
    table = scan_table("cross+window2_flip+atrous2", 3, 3)
    assert torch.equal(table[:4, :9], scan_table("cross", 3, 3))
    assert torch.equal(table[4:5], scan_table("window2_flip", 3, 3))
    assert torch.equal(table[5:, :4], scan_table("atrous2", 3, 3))
    assert (table[:4, 9:] == -1).all() and (table[5:, 4:] == -1).all()


@pytest.mark.parametrize("name", ["raster", "cross", "window2", "zigzag", "atrous2"])
def test_flip_reverses_every_route(name):
    assert torch.equal(scan_table(name + "_flip", 3, 5), scan_table(name, 3, 5).flip(1))


def test_bidirectional_is_raster_both_ways():
    assert torch.equal(scan_table("bidirectional", 3, 5), scan_table("raster+raster_flip", 3, 5))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hilbrt", "unknown scan order 'hilbrt'; did you mean 'hilbert'"),
        ("Cross", "did you mean 'cross'"),
        ("windw7", "did you mean 'window7'"),
        ("raster+snak_flip", "unknown scan order 'snak' in 'raster\\+snak_flip'; did you mean 'snake'"),
        ("window", "'window' needs a whole number from 1 on after 'window', as in 'window2'"),
        ("window0", "'window0' needs a whole number from 1 on"),
        ("atrous<k>", "'atrous<k>' needs a whole number from 1 on"),
        ("raster+", "unknown scan order '' in 'raster\\+'"),
        ("snake_miror", "'snake_miror': unknown modifier '_miror' of 'snake'; did you mean '_mirror'"),
        ("raster+window7_t_r45", "'window7_t_r45' in .*: unknown modifier '_r45' of 'window7'; did you mean '_r90'"),
        ("cross_upside", "unknown modifier '_upside' of 'cross'; .*known: _t, _r90, .*, and _flip at the end"),
        ("cross_flip_t", "'cross_flip_t': _flip comes last and once, as in 'cross_t_flip'"),
        ("bidirectional_flip_flip", "_flip comes last and once"),
        ("bidirectional_tt", "unknown modifier '_tt' of 'bidirectional'; did you mean '_t'"),
        ("cross_t[1]", "one route is chosen by its number, before any modifier, as in 'cross\\[0\\]'"),
        ("cross[-1]", "one route is chosen by its number"),
        ("cross[01]", "one route is chosen by its number"),
        ("cross[1", "one route is chosen by its number"),
        ("cross[1]_flop", "unknown modifier '_flop' of 'cross'; did you mean '_flip'"),
        ("cross[4]", "'cross\\[4\\]' asks for route 4, but 'cross' has 4 routes, counted from 0"),
        ("raster[1]_t", "asks for route 1, but 'raster' has 1 route, counted from 0"),
        ("spyral_t", "unknown scan order 'spyral' in 'spyral_t'; did you mean 'spiral'"),
        ("dgonal[0]", "did you mean 'diagonal'"),
        ("window[0]", "'window' in 'window\\[0\\]' needs a whole number"),
        ("", "known: .*cross.*zorder"),
    ],
)
def test_unknown_name(name, message):
    for function in (check_scan, num_routes, lambda name: scan_table(name, 3, 4)):
        with pytest.raises(ValueError, match=message):
            function(name)


def test_name_of_another_type():
    with pytest.raises(TypeError, match="given by name, like 'cross'; found int: 4"):
        check_scan(4)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 4)])
def test_empty_map(size):
    with pytest.raises(ValueError, match=f"at least 1 x 1, found {size[0]} x {size[1]}"):
        scan_table("cross", *size)


def test_size_that_is_not_whole():
    with pytest.raises(TypeError):
        scan_table("cross", 3.5, 4)


def test_register(clean_registry):
    @register_scan("odd_first", routes=1)
    def odd_first(height, width):
        index = torch.arange(height * width)
        return torch.cat([index[1::2], index[::2]])[None]

    assert "odd_first" in list_scans()
    assert scan_table("odd_first", 2, 3).tolist() == [[1, 3, 5, 0, 2, 4]]
    assert scan_table("odd_first_flip+raster", 2, 3).tolist() == [[4, 2, 0, 5, 3, 1], [0, 1, 2, 3, 4, 5]]
    assert inverse_table("odd_first", 2, 3).tolist() == [[3, 0, 4, 1, 5, 2]]


def test_register_again(clean_registry):
    def define(flip):
        @register_scan("mine", routes=1)
        def mine(height, width):
            table = torch.arange(height * width)[None]
            return table.flip(1) if flip else table

    define(flip=False)
    assert scan_table("mine", 1, 3).tolist() == [[0, 1, 2]]
    assert direction_table("mine", 1, 3).tolist() == [[0, 1, 1]]
    define(flip=True)  # the same definition, run again: no stale table
    assert scan_table("mine", 1, 3).tolist() == [[2, 1, 0]]
    assert inverse_table("mine", 1, 3).tolist() == [[2, 1, 0]]
    assert direction_table("mine", 1, 3).tolist() == [[0, 2, 2]]

    with pytest.raises(ValueError, match="'mine' is already registered by .*define.*mine"):
        register_scan("mine", routes=1)(lambda height, width: None)


@pytest.mark.parametrize(
    "name",
    [
        *("a+b", "Mine", "7", "", "a<k>b", "window<k>x", "mine[0]", "mine_r<k>"),
        *(f"mine{ending}" for ending in (*modifiers.TURNS, "_flip")),
        *("window_flip<k>", "window_t<k>"),
    ],
)
def test_register_malformed_name(name):
    with pytest.raises(ValueError, match="cannot register scan order"):
        register_scan(name, routes=1)


def test_register_without_routes():
    with pytest.raises(ValueError, match="declares 0 routes"):
        register_scan("mine", routes=0)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (torch.zeros(1, 6), TypeError, "a tensor of torch.float32; expected a tensor of integers"),
        (torch.zeros(1, 6, dtype=torch.bool), TypeError, "a tensor of torch.bool"),
        ([[0, 1, 2, 3, 4, 5]], TypeError, "for 2 x 3, list; expected a tensor of integers"),
        (torch.arange(6), ValueError, r"shape \(6,\); expected \(routes, steps\) = \(1, at least 1\)"),
        (torch.arange(6).view(2, 3), ValueError, r"shape \(2, 3\)"),
        (torch.zeros(1, 0, dtype=torch.int64), ValueError, r"shape \(1, 0\)"),
        (torch.arange(1, 7)[None], ValueError, r"entries from 1 to 6; they must lie in \[-1, 5\]"),
        (torch.arange(-2, 4)[None], ValueError, "entries from -2 to 3"),
    ],
)
def test_bad_table(clean_registry, result, error, message):
    register_scan("bad", routes=1)(lambda height, width: result)
    with pytest.raises(error, match=f"scan order 'bad'.*{message}"):
        scan_table("bad", 2, 3)


def test_own_order_with_modifiers(clean_registry):
    @register_scan("mine", routes=2)
    def mine(height, width):
        assert (height, width) == (3, 2)
        return torch.tensor([[0, 1, 2, 3, 4, 5], [4, 5, -1, 0, 1, -1]], dtype=torch.int32)

    assert scan_table("mine_t", 2, 3).tolist() == [[0, 3, 1, 4, 2, 5], [2, 5, -1, 0, 3, -1]]
    assert scan_table("mine[1]_r90_flip", 2, 3).tolist() == [[-1, 5, 2, -1, 3, 0]]


def test_a_route_that_repeats_a_token_has_no_inverse(clean_registry):
    register_scan("twice", routes=2)(lambda height, width: torch.tensor([[0, 1, 2], [0, 1, 1]]))
    assert scan_table("twice", 1, 3).shape == (2, 3)
    with pytest.raises(ValueError, match="'twice' has no inverse on 1 x 3: route 1 visits token 1 more than once"):
        inverse_table("twice", 1, 3)


@pytest.mark.parametrize("function", [scan_table, inverse_table, direction_table])
def test_cache_returns_the_same_tensor(function):
    table = function("cross", 5, 7)
    assert function("cross", 5, 7) is table
    assert function("cross", 5, 7, "cpu") is table
    assert function("cross", 5, 7, torch.device("cpu")) is table
    assert function("cross", 7, 5) is not table
    assert function("cross", 5, 7, "meta").device.type == "meta"
    assert function("cross", 5, 7) is table
    assert table.is_contiguous() and table.dtype == torch.int32


def test_cache_is_bounded(monkeypatch):
    clear_tables()
    monkeypatch.setattr(tables, "_CACHE_BYTES", 50 * 4096)
    first = scan_table("raster", 1, 1)
    for width in range(2, 50):
        scan_table("raster", 1, width)
        assert scan_table("raster", 1, 1) is first  # used again and again
    second = scan_table("raster", 1, 2)
    scan_table("raster", 1, 50)
    scan_table("raster", 1, 51)
    assert scan_table("raster", 1, 3) is not None and scan_table("raster", 1, 2) is second
    assert all(cached.bytes <= 50 * 4096 for cached in tables._caches)
    large = scan_table("cross", 300, 300)  # larger than all that may be kept: kept alone
    assert scan_table("cross", 300, 300) is large
    assert scan_table("raster", 1, 1) is not first
    clear_tables()


def test_the_operators_know_a_table_without_reading_it(monkeypatch):
    clear_tables()
    with_padding = scan_table("window2", 3, 3)
    monkeypatch.setattr(operator_tables, "table_facts", None)  # what reads values
    assert operator_tables.check_table(with_padding, 9) == (True, True, False)
    assert operator_tables.check_table(scan_table("cross", 40, 30, middle_token=True), 1201) == (False, True, False)
    with pytest.raises(TypeError):
        operator_tables.check_table(with_padding.clone(), 9)


def test_placing_tables():
    before = scan_table("cross", 4, 4)
    with placing_tables(lambda table, device: table.to("meta")):
        assert scan_table("cross", 4, 4, "cuda:7").is_meta
    assert torch.equal(scan_table("cross", 4, 4), before)
    with pytest.raises((AssertionError, RuntimeError)):
        scan_table("cross", 4, 4, "cuda:7")
