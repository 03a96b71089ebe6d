"""Stems and downsampling keep channels contiguous and round sizes as said."""

import pytest
import torch

from visionssm.layers import ConvDownsample, ConvStem, PatchMerging, PatchStem


@pytest.mark.parametrize("layer", [ConvDownsample, PatchMerging])
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 4), (1, 1)])
def test_downsampling_rounds_up(layer, size):
    y = layer(6, 10)(torch.randn(2, *size, 6))
    assert y.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 10)
    assert y.is_contiguous()


def test_merging_reads_patches_column_by_column():
    layer = PatchMerging(1, 4, norm_layer=lambda *args, **kwargs: torch.nn.Identity())
    torch.nn.init.eye_(layer.reduction.weight)
    y = layer(torch.arange(6.0).view(1, 2, 3, 1))
    assert y.flatten().tolist() == [0, 3, 1, 4, 2, 5, 0, 0]


@pytest.mark.parametrize("size, patch, conv", [((32, 64), (8, 16), (8, 16)), ((33, 47), (8, 11), (9, 12))])
def test_stems(size, patch, conv):
    x = torch.randn(2, 3, *size)
    for layer, expected in ((PatchStem(3, 8), patch), (ConvStem(3, 8), conv)):
        y = layer(x)
        assert y.shape == (2, *expected, 8)
        assert y.is_contiguous()
