"""Scans seen from outside: in every family, with what they were given."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import visionssm
from tests.families import at_size
from visionssm.analysis.scan_calls import ScanCalls
from visionssm.ops import causal_conv1d, selective_scan


@pytest.mark.parametrize("name", visionssm.list_models("test_*"))
def test_every_scan_is_seen(name):
    torch.manual_seed(0)
    model = timm.create_model(name, **at_size(name, 32)).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        with ScanCalls() as seen, FlopCounterMode(display=False) as counter:
            torch.testing.assert_close(model(images), expected)
    counted = counter.get_flop_counts()["Global"].get(torch.ops.visionssm.selective_scan, 0)
    scans = [call for call in seen.calls if call.function is selective_scan]
    assert sum(flops(call) for call in scans) == counted
    for call in scans:
        again = selective_scan(**call.arguments)
        torch.testing.assert_close(again, call.output)


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call.function(**call.arguments)
    return counter.get_total_flops()


def test_convolutions_and_replacing():
    model = timm.create_model("test_vim").eval()
    images = torch.randn(1, 3, 32, 32)

    def silence(function, arguments):
        out = function(**arguments)
        return torch.zeros_like(out) if function is selective_scan else out

    with torch.no_grad(), ScanCalls(silence, keep=False) as seen:
        silent = model(images)
    assert seen.calls == []
    with torch.no_grad(), ScanCalls() as seen:
        assert not torch.allclose(model(images), silent)
    functions = [call.function for call in seen.calls]
    assert functions.count(causal_conv1d) == functions.count(selective_scan) > 0
    assert seen.calls[0].arguments["bias"] is model.get_parameter(
        next(n for n, _ in model.named_parameters() if n.endswith("conv_bias"))
    )
