"""The seam of the backends: a further one is an entry of the tuple, chosen, refused and run like the others."""

import logging

import pytest
import torch
from test_selective_scan import NAMES, assert_close, make_inputs, run

from visionssm.ops import available_backends, backend_unavailable, dispatch, selective_scan
from visionssm.ops.selective_scan import backends, portable
from visionssm.ops.selective_scan.backend import Backend

ran: list = []


def forward(scan, save):
    ran.append("forward")
    return portable.forward(scan, save)


def backward(grad, grad_last, states, scan):
    ran.append("backward")
    return portable.backward(grad, grad_last, states, scan)


@pytest.fixture
def another(monkeypatch):
    """Puts a backend in front of the others: that of the portable functions, which says when it is run."""

    def add(devices=("cpu",), reason=None, **changes):
        backend = Backend("another", devices, lambda *_: reason, forward, backward, portable.states_shape)
        monkeypatch.setattr(backends, "BACKENDS", (backend._replace(**changes), *backends.BACKENDS))
        ran.clear()

    monkeypatch.delenv("VISIONSSM_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_told", set())
    return add


def test_first_that_is_meant_for_the_device_is_taken(another):
    another()
    assert available_backends()[0] == "another"
    args, options = make_inputs(1)
    assert_close(run(args, options, None), run(args, options, "reference"), 1e-10)
    assert ran == ["forward", "backward"]


def test_one_for_other_devices_is_taken_when_asked_for(another, monkeypatch):
    another(devices=("cuda",))
    args, options = make_inputs(1)
    run(args, options, None)
    assert ran == []
    run(args, options, "another")
    assert ran == ["forward", "backward"]
    monkeypatch.setenv("VISIONSSM_BACKEND", "another")
    run(args, options, None)
    assert ran == ["forward", "backward"] * 2


def test_one_that_cannot_run_is_passed_over_once_aloud_and_refused_by_name(another, caplog, monkeypatch):
    another(reason="the moon is full")
    assert backend_unavailable("another", "cpu") == "the moon is full"
    assert "another" not in available_backends()
    args, options = make_inputs(1)
    with caplog.at_level(logging.WARNING):
        run(args, options, None)
        run(args, options, None)
    told = [r.message for r in caplog.records if "another" in r.message]
    assert ran == [] and told == [
        "selective_scan takes the portable backend on cpu, not the another one: the moon is full"
    ]
    with pytest.raises(RuntimeError, match="the another backend cannot run on cpu: the moon is full; use backend='po"):
        run(args, options, "another")
    monkeypatch.setenv("VISIONSSM_BACKEND", "another")
    with pytest.raises(RuntimeError, match="the another backend cannot run on cpu: the moon is full"):
        run(args, options, None)


def test_unknown_backend():
    with pytest.raises(ValueError, match="unknown backend 'fast'; expected one of triton, "):
        backend_unavailable("fast")


class Scan(torch.nn.Module):
    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, u, delta, A, B, C):
        return selective_scan(u, delta, A, B, C, order=self.order)


def test_a_program_holds_no_choice(another, tmp_path):
    """Exported where one backend is preferred, run where there is another, trained too."""
    args, options = make_inputs(9, dtype=torch.float32)
    inputs = [args[n].requires_grad_() for n in ("u", "delta", "A", "B", "C")]
    program = torch.export.export(Scan(options["order"]), tuple(inputs))
    another()
    y = program.module()(*inputs)
    torch.autograd.grad(y.sum(), inputs)
    assert ran == ["forward", "forward", "backward"]  # the states were not kept
    torch.testing.assert_close(y, Scan(options["order"])(*inputs))


def test_a_compiled_step_runs_what_is_chosen_when_it_runs(another, monkeypatch):
    torch.compiler.reset()
    args, options = make_inputs(9, dtype=torch.float32)
    inputs = [args[n].requires_grad_() for n in ("u", "delta", "A", "B", "C")]
    compiled = torch.compile(Scan(options["order"]), backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(compiled(*inputs).sum(), inputs)
    another()
    for a, e in zip(torch.autograd.grad(compiled(*inputs).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(a, e)
    assert ran == ["forward", "backward"]
    y = compiled(*inputs)
    monkeypatch.setenv("VISIONSSM_BACKEND", "portable")
    monkeypatch.setattr(portable, "BACKEND", None)
    monkeypatch.setattr(
        backends,
        "BACKENDS",
        tuple(b._replace(states_shape=lambda scan: (3, 1)) if b.name == "portable" else b for b in backends.BACKENDS),
    )
    with pytest.raises(RuntimeError, match="portable backend was given states of shape .*another backend ran the forw"):
        torch.autograd.grad(y.sum(), inputs)


def test_eager_backward_is_that_of_the_forward(another, monkeypatch):
    another()
    args, options = make_inputs(9, dtype=torch.float32)
    args = {n: args[n].requires_grad_() for n in NAMES if args[n] is not None}
    y = selective_scan(**args, **options)
    monkeypatch.setenv("VISIONSSM_BACKEND", "reference")
    torch.autograd.grad(y.sum(), list(args.values()))
    assert ran == ["forward", "backward"]
