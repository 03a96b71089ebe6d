"""The wavefront scan's Triton kernels against its definition: compiled where there is a GPU, else interpreted.

The interpreter must be chosen before triton is imported, which tests/conftest.py does.
"""

import pytest
import torch
from test_wavefront_scan import assert_close, make_inputs, run

pytest.importorskip("triton")
from visionssm.ops import wavefront_scan  # noqa: E402
from visionssm.ops.wavefront_scan.contract import Wavefront  # noqa: E402
from visionssm.ops.wavefront_scan.triton import launch  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def not_a_number(monkeypatch):
    """Uninitialised memory holds NaN, so that reading or returning it shows."""
    new_empty = torch.Tensor.new_empty

    def nan_filled(self, *args, **kwargs):
        x = new_empty(self, *args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", nan_filled)


def compare(dtype=torch.float32, **case):
    scan = make_inputs(**case, dtype=dtype)
    exact = run(Wavefront(*(None if t is None else t.double() for t in scan)), "reference")
    actual = run(Wavefront(*(None if t is None else t.to(DEVICE) for t in scan)), "triton")
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert_close([a.cpu() for a in actual], [e.to(a.dtype) for a, e in zip(actual, exact, strict=True)], tolerance)


@pytest.mark.parametrize(("H", "W"), [(1, 1), (1, 4), (4, 1), (3, 6), (5, 2)])
def test_sizes(H, W):
    compare(seed=H, b=1, H=H, W=W, d=2, N=2)


@pytest.mark.parametrize(("N", "with_D"), [(1, True), (3, False), (16, True)])
def test_states(N, with_D):
    compare(seed=N, b=1, H=3, W=3, d=3, N=N, with_D=with_D)


def test_several_images_and_blocks_of_channels(monkeypatch):
    monkeypatch.setattr(launch, "_TILE", 32)
    compare(seed=3, b=2, H=3, W=2, d=5, N=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    compare(dtype, seed=4, b=1, H=3, W=3, d=2, N=2)


def test_strided_inputs():
    scan = make_inputs(5, b=2, H=2, W=3, d=2, dtype=torch.float32)
    strided = Wavefront(*(t.transpose(0, -1).contiguous().transpose(0, -1).to(DEVICE) for t in scan))
    assert_close([t.cpu() for t in run(strided, "triton")], run(scan, "reference"), 1e-5)


def test_maps_whose_offsets_need_64_bits_are_refused():
    x = torch.zeros(1).expand(1, 2**16, 2**15, 1)
    rates = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="65536 x 32768 x 1 with 1 states is too large.*portable"):
        launch.forward(Wavefront(x, x, x, rates, rates, x, x, x, None), False)


def test_doubles_are_refused():
    with pytest.raises(RuntimeError, match="triton backend cannot run.*not float64"):
        wavefront_scan(*make_inputs(6), backend="triton")
