"""The SSM of several routes and the mixer of maps around it."""

import pytest
import torch
import torch.nn.functional as F

from visionssm.layers import SS2D, SelectiveSSM
from visionssm.ops import selective_scan
from visionssm.scans import num_routes, scan_table


def ssm(**kwargs):
    torch.manual_seed(0)
    return SelectiveSSM(**dict(dict(dim=6, routes=4, d_state=3, dt_rank=2), **kwargs))


def test_one_projection_of_all_routes_is_one_of_each():
    layer, order = ssm(), scan_table("cross", 3, 5)
    u = torch.randn(2, 15, 6)
    expected = 0
    for k in range(4):
        dt, b, c = (u @ layer.x_proj_weight[k].T).split(layer.splits, dim=-1)
        expected = expected + selective_scan(
            u,
            dt @ layer.dt_weight[k].T,
            -layer.A_log[k].exp(),
            b,
            c,
            layer.D[k],
            layer.dt_bias[k],
            order=order[k : k + 1],
            backend="reference",
        )
    torch.testing.assert_close(layer(u, order), expected)


def test_input_of_each_route():
    layer, order = ssm(shared_input=False), scan_table("cross", 3, 5)
    shared = ssm()
    shared.load_state_dict(layer.state_dict())
    u = torch.randn(2, 15, 6)
    torch.testing.assert_close(layer(u[:, :, None].expand(-1, -1, 4, -1), order), shared(u, order))


def test_input_stored_by_step():
    layer, order = ssm(shared_input=False), scan_table("cross", 3, 5)
    u = torch.randn(2, 15, 4, 6)
    by_step = torch.stack([u[:, order[k], k] for k in range(4)], dim=2)
    torch.testing.assert_close(layer(by_step, order, num_tokens=15, by_step=True), layer(u, order))


@pytest.mark.parametrize("out, shape", [("sum", (2, 15, 6)), ("route", (2, 15, 4, 6)), ("step", (2, 15, 4, 6))])
def test_outputs(out, shape):
    layer = ssm()
    assert layer(torch.randn(2, 15, 6), scan_table("cross", 3, 5), out=out).shape == shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    layer = ssm(dtype=dtype)
    u = torch.randn(2, 15, 6, dtype=dtype)
    assert layer(u, scan_table("cross", 3, 5)).dtype == dtype


def test_float32_of_routes_under_autocast():
    layer, order = ssm(), scan_table("cross", 8, 8)
    u = torch.randn(1, 64, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(u.bfloat16(), order)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, layer(u, order), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("gated", [False, True])
def test_mixer_written_out(gated):
    torch.manual_seed(0)
    mixer = SS2D(8, 12, d_state=2, dt_rank=1, gated=gated, conv_bias=True)
    x = torch.randn(2, 3, 5, 8)
    projected = mixer.in_proj(x)
    inner, z = projected.chunk(2, dim=-1) if gated else (projected, None)
    inner = F.silu(mixer.conv(inner))
    y = mixer.out_norm(mixer.ssm(inner.reshape(2, 15, 12), scan_table("cross", 3, 5))).view(2, 3, 5, 12)
    expected = mixer.out_proj(y * F.silu(z) if gated else y)
    torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize("scan", ["raster", "snake", "cross+window2", "hilbert_flip"])
def test_any_order_sizes_the_mixer(scan):
    mixer = SS2D(8, 8, d_state=1, dt_rank=1, scan=scan)
    assert mixer.ssm.D.shape[0] == num_routes(scan)
    assert mixer(torch.randn(1, 5, 7, 8)).shape == (1, 5, 7, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1)])
def test_thin_maps(size):
    mixer = SS2D(8, 8, d_state=1, dt_rank=1)
    x = torch.randn(2, *size, 8, requires_grad=True)
    mixer(x).sum().backward()
    assert torch.isfinite(x.grad).all()
