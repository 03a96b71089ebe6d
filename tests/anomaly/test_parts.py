"""Parts of MambaAD: the authors' files completely, other scan orders refused, any size."""

import json
from pathlib import Path

import pytest
import torch

from visionssm.anomaly import MambaADDecoder, MambaADFusion
from visionssm.errors import CheckpointError
from visionssm.scans import inverse_table, scan_table

KEYS = Path(__file__).resolve().parents[1] / "data" / "keys"


@pytest.mark.parametrize("variant", ["mambaad_decoder", "mambaad_mff_oce"])
def test_published_files_fit_exactly(variant):
    record = json.loads((KEYS / f"{variant}.json").read_text())
    state = {n: torch.empty(shape, device="meta") for n, shape in record["keys"]}
    tables = sum(v.numel() for n, v in state.items() if ".index_flat" in n)
    with torch.device("meta"):
        model = MambaADDecoder() if tables else MambaADFusion()
    assert sum(p.numel() for p in model.parameters()) == record["params"] - tables
    prefix = "net_s." if tables else "mff_oce."
    whole = {prefix + n: v for n, v in state.items()} | {"net_t.conv1.weight": torch.ones(1)}
    assert model.checkpoint_filter_fn(whole, model).keys() == model.state_dict().keys()
    with pytest.raises(CheckpointError, match="missing from the file"):
        model.checkpoint_filter_fn(dict(list(state.items())[1:]), model)


def test_tables_of_a_file_must_be_ours():
    model = MambaADDecoder((16, 8), (2, 2), 2, num_directions=2)
    state = dict(model.state_dict())
    name = "layers_up.0.blocks.0.smm_blocks.0.self_attention.scans.index_flat"
    for table in (scan_table("hilbert", 8, 8), inverse_table("hilbert", 8, 8)):
        with pytest.raises(CheckpointError, match="not one of"):
            model.checkpoint_filter_fn({**state, name: table.view(1, 1, -1), "other": torch.ones(1)}, model)
    with pytest.raises(CheckpointError, match="another scan order than 'hilbert'"):
        model.checkpoint_filter_fn({**state, name: scan_table("snake[0]", 8, 8).view(1, 1, -1)}, model)


def test_rebuilds_maps_of_any_size():
    maps = [torch.randn(1, c, *size) for c, size in ((8, (24, 40)), (16, (12, 20)), (32, (6, 10)))]
    fused = MambaADFusion((8, 16, 32)).eval()(maps)
    assert fused.shape == (1, 64, 3, 5)
    rebuilt = MambaADDecoder((64, 32, 16, 8), (2,) * 4, 2)(fused)
    assert [y.shape for y in rebuilt] == [m.shape for m in maps]
    sum(y.square().mean() for y in rebuilt).backward()


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="multiples of 3 or even"):
        MambaADDecoder((16, 8), (5, 2))
    with pytest.raises(ValueError, match="directions must be"):
        MambaADDecoder((16, 8), (2, 2), num_directions=3)
    with pytest.raises(ValueError, match="the decoder reads maps"):
        MambaADDecoder((16, 8), (2, 2), 2)(torch.randn(1, 8, 4, 4))
    with pytest.raises(ValueError, match="expected maps of"):
        MambaADFusion()([torch.randn(1, 8, 4, 4)])
