"""Launches are planned once for tensors of the same kinds, and go past Triton's look-up from the second one on."""

import pytest
import torch
from test_selective_scan import make_inputs

pytest.importorskip("triton")
from visionssm.ops import selective_scan  # noqa: E402
from visionssm.ops.selective_scan.triton import config, launch, prepared  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Compiled:
    def __init__(self, calls):
        self.calls = calls

    def __getitem__(self, grid):
        return lambda *arguments: self.calls.append((grid, arguments))


class Kernel:
    """As much of a Triton kernel as `Prepared` needs; `found` is what its launcher returns."""

    arg_names = ("x", "n", "out", "BLOCK")

    def __init__(self):
        self.searched, self.direct = [], []

    def __getitem__(self, grid):
        def run(**arguments):
            self.searched.append((grid, arguments))
            return Compiled(self.direct)

        return run


def test_the_second_launch_goes_to_what_was_compiled(monkeypatch):
    monkeypatch.setattr(prepared, "CompiledKernel", Compiled)
    kernel = Kernel()
    launch_kernel = prepared.Prepared(kernel, (5,), n=3, BLOCK=32, num_warps=1)
    launch_kernel(x="first", out="a")
    launch_kernel(x="second", out=None)
    assert kernel.searched == [((5,), dict(x="first", out="a", n=3, BLOCK=32, num_warps=1))]
    assert kernel.direct == [((5, 1, 1), ("second", 3, None, 32))]


def test_interpreted_kernels_are_searched_for_every_time():
    kernel = Kernel()  # what it returns is no compiled kernel
    launch_kernel = prepared.Prepared(kernel, (2, 3), n=3, BLOCK=32)
    launch_kernel(x=1, out=2)
    launch_kernel(x=1, out=2)
    assert len(kernel.searched) == 2 and not kernel.direct


@pytest.fixture
def planned(monkeypatch):
    monkeypatch.setattr(launch, "_plans", {})
    return launch._plans


def scan(**changes):
    args, options = make_inputs(1, b=1, L=4, k=2, d=2, N=1, dtype=torch.float32)
    args |= changes
    tensors = {n: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for n, x in (args | options).items()}
    return selective_scan(**tensors, backend="triton")


def test_equal_calls_share_a_plan(planned):
    scan()
    assert len(planned) == 1
    scan()
    assert len(planned) == 1


def test_what_a_plan_depends_on(planned, monkeypatch):
    scan()
    u = torch.randn(1, 4, 2, 2)
    shifted = torch.empty(17)[1:].as_strided(u.shape, u.stride()).copy_(u)  # an address that is no multiple of 16
    kinds = dict(D=None), dict(u=u.bfloat16()), dict(u=shifted), dict(u=u.transpose(1, 2).contiguous().transpose(1, 2))
    for count, changes in enumerate(kinds, start=2):
        scan(**changes)
        assert len(planned) == count
    monkeypatch.setattr(config, "segments", lambda *_: 1)
    scan()
    assert len(planned) == len(kinds) + 2


def test_plans_are_not_kept_without_end(planned, monkeypatch):
    monkeypatch.setattr(launch, "_PLANS", 2)
    for length in range(2, 7):
        args, options = make_inputs(1, b=1, L=length, k=1, d=2, N=1, kind="raster", dtype=torch.float32)
        selective_scan(**{n: x if x is None else x.to(DEVICE) for n, x in args.items()}, **options, backend="triton")
        assert len(planned) <= 2
