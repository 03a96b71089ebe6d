"""MobileMamba: what is its own."""

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.models.mobilemamba import MobileMamba, NormHead, WaveletConv


@pytest.mark.parametrize(
    "dim, shares, widths",
    [
        (144, (0.8, 0.2), (112, 28, 4)),
        (368, (0.6, 0.3), (224, 110, 34)),
        (368, (0.7, 0.2), (256, 73, 39)),
        (192, (0.8, 0.2), (160, 32, 0)),  # the local share is cut
        (376, (0.7, 0.2), (256, 75, 45)),
    ],
)
def test_channels_are_split_as_published(dim, shares, widths):
    model = MobileMamba((dim,), (1,), (shares[0],), (shares[1],), (3,), device="meta")
    assert model.stages[0].blocks[0].mixer.widths == widths


def test_haars_filters_reconstruct_a_map():
    wavelet = WaveletConv(3, 3)
    x = torch.randn(2, 3, 7, 5)
    wavelet.conv = torch.nn.Identity()
    torch.nn.init.ones_(wavelet.scale)
    torch.testing.assert_close(wavelet(x), x)


@pytest.mark.parametrize("nesting", ["net", "net_E"])
def test_filters_of_a_file_are_used_and_not_trained(nesting):
    model = timm.create_model("test_mobilemamba")
    state = {
        k: torch.full_like(v, 0.25) if k.endswith("wavelet.analysis") else v for k, v in model.state_dict().items()
    }
    model.load_state_dict(model.checkpoint_filter_fn({nesting: state}, model))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    filters = {name: p for name, p in model.named_parameters() if name not in trained}
    assert {name.rsplit(".", 1)[1] for name in filters} == {"analysis", "synthesis"}
    assert all((p == 0.25).all() for name, p in filters.items() if name.endswith("analysis"))


def test_a_block_begins_as_twice_the_identity():
    block = timm.create_model("test_mobilemamba").eval().stages[0].blocks[0]
    x = torch.randn(1, 24, 4, 6)
    torch.testing.assert_close(block(x), 2 * x)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(kernel_sizes=(7, 4, 3)), "odd"),
        (dict(global_ratio=(0.8, 0.7)), "global_ratio must have one value for each of 3 stages"),
        (dict(dims=(24, 32, 48), global_ratio=(0.2, 0.7, 0.6)), "give 0 global"),
        (dict(proj_drop_rate=0.1), "proj_drop_rate"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MobileMamba(**arguments, device="meta")


def test_without_pooling_every_position_is_classified():
    head, maps = NormHead(8, 3, "").eval(), torch.randn(2, 8, 4, 5)
    torch.testing.assert_close(head(maps)[:, 1, 2], head(maps[:, :, 1:2, 2:3])[:, 0, 0])
    assert head(maps).shape == (2, 4, 5, 3)
