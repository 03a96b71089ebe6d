"""MHS-VM's parts beyond the recorded runs: routes that agree, other orders and sizes, precision, bad arguments."""

import pytest
import torch
from timm.models._features_fx import create_feature_extractor, get_graph_node_names

from visionssm.models.mhsvm import HEAD_SCANS, GatedMultiHeadScan, MultiHeadScan, ScanRouteAttention
from visionssm.scans import num_routes


def test_published_heads_have_four_routes():
    assert [num_routes(scan) for scan in HEAD_SCANS.values()] == [4, 4, 4, 4]


def test_routes_that_agree_give_zero_and_finite_gradients():
    y = torch.randn(2, 5, 1, 3).expand(-1, -1, 4, -1).clone().requires_grad_()
    out = ScanRouteAttention(0.0)(y)
    out.sum().backward()
    assert (out == 0).all()
    assert y.grad.isfinite().all()


def test_route_attention_by_hand():
    y = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 1, 4, 1)
    # sum 12, deviation sqrt(14 / 3), mean above the smallest 2
    expected = 12 * ((14 / 3) ** 0.5 / (2 + 1e-5) - 0.4)
    assert ScanRouteAttention(0.4)(y).item() == pytest.approx(expected, rel=1e-6)
    assert ScanRouteAttention(2.0)(y).item() == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 7)])
@pytest.mark.parametrize("scans", [tuple(HEAD_SCANS.values()), ("cross", "hilbert+hilbert_flip"), "bidirectional"])
def test_sizes_and_orders(scans, size):
    torch.manual_seed(0)
    mixer = GatedMultiHeadScan(17, scans, d_state=3, threshold=0.0)
    y = mixer(torch.randn(2, *size, 17))
    assert y.shape == (2, *size, 17)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_low_precision():
    torch.manual_seed(0)
    mixer, x = MultiHeadScan(8, d_state=3, threshold=0.0), torch.randn(2, 4, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mixer(x).isfinite().all()
    assert mixer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert mixer.double()(x.double()).dtype == torch.float64


def test_trace_and_compile():
    torch.manual_seed(0)
    mixer, x = GatedMultiHeadScan(8, d_state=3).eval(), torch.randn(1, 3, 4, 8)
    traced = create_feature_extractor(mixer, {get_graph_node_names(mixer)[1][-1]: "out"})
    torch.testing.assert_close(traced(x)["out"], mixer(x))
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), mixer(x))


@pytest.mark.parametrize(
    ("scans", "message"),
    [
        ((), "expected from 1 to 8 heads for 8 channels, got 0"),
        (("cross",) * 9, "got 9 scan orders"),
        (("cross", "hilbert"), r"needs at least 2; 'hilbert' has 1, take for example 'hilbert\+hilbert_flip'"),
        (("cros",), "did you mean 'cross'"),
    ],
)
def test_bad_arguments(scans, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadScan(8, scans)
