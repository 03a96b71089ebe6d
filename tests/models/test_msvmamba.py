"""MSVMamba: what is its own."""

import json
from pathlib import Path

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.checkpoints import CheckpointError
from visionssm.models.msvmamba import MSVMamba

DATA = Path(__file__).resolve().parent.parent / "data"


def authors_weights(name):
    keys = json.loads((DATA / "keys" / f"{name}.json").read_text())["keys"]
    return {k: torch.empty(shape, device="meta") for k, shape in keys}


def test_slices_stand_in_opposite_order():
    first, v3 = (timm.create_model(f"test_msvmamba{end}").stages[0].blocks[0].mixer for end in ("", "v3"))
    assert (first.low, v3.low) == (0, 1)


@pytest.mark.parametrize("name, other", [("msvmamba_tiny", "msvmambav3_tiny"), ("msvmambav3_tiny", "msvmamba_tiny")])
def test_the_lines_refuse_each_other(name, other):
    model = timm.create_model(name, device="meta")
    with pytest.raises(CheckpointError, match="MSVMamba"):
        model.checkpoint_filter_fn(authors_weights(other), model)


def test_padded_steps_of_the_smaller_map_leave_no_trace():
    torch.manual_seed(0)
    plain = timm.create_model("test_msvmamba", low_scan="window1").eval()
    padded = timm.create_model("test_msvmamba", low_scan="window64").eval()  # one window, filled with zero tokens
    padded.load_state_dict(plain.state_dict())
    raster = timm.create_model("test_msvmamba", low_scan="raster").eval()
    raster.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), raster(x))
        mixer, other = padded.stages[0].blocks[0].mixer, plain.stages[0].blocks[0].mixer
        # zero tokens after the last one of a row of one window change states, not the norm's bias
        y = torch.randn(1, 1, 8, 32)
        torch.testing.assert_close(mixer._scan_low(y), other._scan_low(y))


@pytest.mark.parametrize("name", ["scan", "low_scan"])
def test_orders_of_several_routes_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name}='cross' has 4 routes; take one of them, for example 'cross\[0\]'"):
        MSVMamba(**{name: "cross"}, device="meta")
