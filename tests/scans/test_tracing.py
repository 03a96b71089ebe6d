"""Tables inside compilers, exporters and tracers, and under modes that must not leak into the cache."""

import pytest
import torch
from timm.models import create_feature_extractor
from torch import nn

from visionssm.scans import direction_table, inverse_table, scan_table, tables


class Mixer(nn.Module):
    """Sums the tokens along each route: wrong tables, or tables of another size, change the result."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        height, width = x.shape[1], x.shape[2]
        table = scan_table("cross", height, width, x.device)
        back = inverse_table("cross", height, width, x.device)
        turned = scan_table("hilbert", width, height, device=x.device)
        codes = direction_table("snake[0]_r90+snake_t_flip", height, width, x.device)[:4]
        x = x.flatten(1, 2) * self.weight
        routes = x[:, table].cumsum(2) + codes[..., None]
        routes = routes.gather(2, back[None, :, :, None].long().expand(routes.shape))
        return routes.sum(1) + x[:, turned[0]]


@pytest.fixture(autouse=True)
def fresh():
    """Start from an empty cache and an empty compiler."""
    tables.clear_tables()
    torch._dynamo.reset()


def maps(*sizes):
    return [torch.randn(2, height, width, 3) for height, width in sizes]


@pytest.mark.parametrize("dynamic", [None, False, True])
def test_compile_without_graph_breaks(dynamic):
    mixer = Mixer()
    compiled = torch.compile(mixer, backend="eager", fullgraph=True, dynamic=dynamic)
    for x in maps((4, 6), (6, 4), (5, 7), (4, 6)):
        torch.testing.assert_close(compiled(x), mixer(x))


def test_compile_with_autograd():
    mixer = Mixer()
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    (x,) = maps((4, 6))
    (expected,) = torch.autograd.grad(mixer(x).square().sum(), mixer.weight)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), mixer.weight)[0], expected)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    mixer = Mixer()
    (x,) = maps((4, 6))
    program = torch.export.export(mixer, (x,), strict=strict)  # from an empty cache: the table is first asked for here
    torch.testing.assert_close(program.module()(x), mixer(x))
    table = scan_table("cross", 4, 6)
    assert type(table) is torch.Tensor  # no fake tensor stays in the cache
    assert table[2, 0] == 23


def test_export_keeps_the_size_fixed():
    (x,) = maps((4, 6))
    height = torch.export.Dim("height", min=2, max=64)
    with pytest.raises(Exception, match="(?s)marked.*dynamic.*specialized"):
        torch.export.export(Mixer(), (x,), dynamic_shapes=({1: height},))


def test_export_with_a_dynamic_batch():
    mixer = Mixer()
    (x,) = maps((4, 6))
    program = torch.export.export(mixer, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = torch.randn(5, 4, 6, 3)
    torch.testing.assert_close(program.module()(x), mixer(x))


def test_symbolic_trace_keeps_every_size():
    mixer = Mixer()
    traced = torch.fx.symbolic_trace(mixer)
    for x in maps((4, 6), (5, 3)):
        torch.testing.assert_close(traced(x), mixer(x))


def test_timm_feature_extractor():
    mixer = nn.Sequential(Mixer(), nn.Identity())
    extractor = create_feature_extractor(mixer, ["0"])
    for x in maps((4, 6), (5, 3)):
        torch.testing.assert_close(extractor(x)["0"], mixer(x))


def test_default_device_meta():
    with torch.device("meta"):
        for name in ("cross", "window3", "atrous2", "hilbert", "zorder", "spiral", "zigzag", "snake"):
            assert scan_table(name, 4, 6).device.type == "cpu"
        assert inverse_table("cross", 4, 6).device.type == "cpu"
        assert direction_table("cross", 4, 6).device.type == "cpu"
    assert scan_table("cross", 4, 6)[2, 0] == 23


def test_first_use_in_inference_mode_does_not_spoil_training():
    mixer = Mixer()
    (x,) = maps((4, 6))
    with torch.inference_mode():
        mixer(x)
    mixer(x).sum().backward()
    assert mixer.weight.grad is not None
    assert not scan_table("cross", 4, 6).is_inference()


def test_first_use_under_a_fake_mode_does_not_spoil_the_cache():
    with torch._subclasses.FakeTensorMode():
        scan_table("cross", 4, 6)
        inverse_table("cross", 4, 6)
    assert type(scan_table("cross", 4, 6)) is torch.Tensor
    assert inverse_table("cross", 4, 6)[2, 0] == 23
