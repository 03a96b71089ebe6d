"""What is MambaVision's own: windows, what they are filled with, and the files that are refused."""

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.checkpoints import CheckpointError


def make(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("test_mambavision", **kwargs).eval()


def test_what_fills_a_window_takes_part():
    """The zeros are not masked, so a larger window than the map changes the result."""
    x = torch.randn(1, 3, 64, 64)
    fitting, larger = make(), make(window_size=(4, 4, 5, 3))
    larger.load_state_dict(fitting.state_dict())
    with torch.no_grad():
        assert (fitting(x) - larger(x)).abs().max() > 1e-4


def test_windows_are_independent_of_each_other():
    model = make()
    x = torch.randn(1, 48, 8, 8)
    model.stages[2].downsample = torch.nn.Identity()
    with torch.no_grad():
        whole = model.stages[2](x)
        corner = model.stages[2](x[:, :, 4:, :4])
    torch.testing.assert_close(whole[:, :, 4:, :4], corner)


def test_bias_of_the_step_size_counts_twice():
    mixer = make().stages[2].blocks[0].mixer
    u, order = torch.randn(2, 16, 24), torch.arange(16, dtype=torch.int32)[None]
    with torch.no_grad():
        twice = mixer.ssm(u, order)
        mixer.ssm.dt_bias *= 2
        mixer.ssm.dt_bias_scale = 1
        torch.testing.assert_close(mixer.ssm(u, order), twice)
        mixer.ssm.dt_bias += 1  # the comparison sees the bias
        assert (mixer.ssm(u, order) - twice).abs().max() > 1e-4


def test_weights_of_transformers_are_refused():
    model = make()
    with pytest.raises(CheckpointError, match=r"transformers library.*\.pth\.tar"):
        model.checkpoint_filter_fn({"model.patch_embed.conv_down.0.weight": torch.zeros(1)}, model)


@pytest.mark.parametrize(
    "args, message",
    [
        (dict(num_heads=(1, 1, 2)), "4, 3 and 4"),
        (dict(num_heads=(1, 1, 5, 4)), "5 heads do not divide the 48 channels of stage 2"),
        (dict(window_size=(4, 4, 0, 2)), "at least 1"),
        (dict(dims=(16, 32, 47, 64)), "even, got 47"),
    ],
)
def test_arguments_out_of_range_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        make(**args)
