"""What is Mamba-ND's own: orders that take turns, tokens that merge, norms on the main path."""

import pytest
import timm
import torch

import visionssm  # noqa: F401


def make(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("test_mamband", **kwargs).eval()


def test_orders_take_turns():
    published = ["raster", "raster_r180", "vertical", "vertical_r180"]
    assert [block.mixer.scan for block in make().blocks] == published
    assert [block.mixer.scan for block in make(scan=["snake[0]", "hilbert[0]"]).blocks] == [
        "snake[0]",
        "hilbert[0]",
    ] * 2
    assert {block.mixer.scan for block in make(scan="cross").blocks} == {"cross"}


def test_maps_shrink_where_tokens_merge():
    model = make(depth=5, merge_after=(0, 3))
    assert [info["reduction"] for info in model.feature_info] == [16, 16, 16, 32, 32]
    with torch.no_grad():
        maps = model.forward_intermediates(torch.randn(1, 3, 72, 56), intermediates_only=True)
    assert [tuple(y.shape[2:]) for y in maps] == [(5, 4)] * 3 + [(3, 2)] * 2


def test_what_is_not_normed_is_not_kept():
    """A block gives the same for its input and a multiple of it, but for the epsilon."""
    block, x = make().blocks[0], torch.randn(1, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(block(100 * x, 8, 8), block(x, 8, 8), atol=1e-3, rtol=1e-3)


def test_dropout_after_the_position_embedding():
    model = make(pos_drop_rate=0.5).train()
    x, _ = model.embed(torch.randn(2, 3, 64, 64))
    assert 0.4 < (x == 0).float().mean() < 0.6


@pytest.mark.parametrize(
    "args, error, message",
    [
        (dict(scan=[]), ValueError, "empty"),
        (dict(merge_after=(4,)), ValueError, "from 0 to 3"),
        (dict(shuffle_rate=0.1), TypeError, "shuffle_rate"),
    ],
)
def test_arguments_out_of_range_are_refused(args, error, message):
    with pytest.raises(error, match=message):
        make(**args)
