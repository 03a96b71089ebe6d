"""SiMBA's dense labels and refusals."""

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.models.simba import Box, EinFFT, SiMBA


def test_mixed_images_give_their_dense_logits_back():
    model = timm.create_model("test_simba", num_classes=5).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits, dense, box = model.forward_train(x)
        assert logits.shape == (2, 5) and dense.shape == (2, 6, 5) and isinstance(box, Box)
        # a box of the whole map exchanges the images, and their dense logits back
        swapped, dense, _ = model.forward_train(x, Box(0, 0, 2, 3))
        plain, plain_dense, _ = model.forward_train(x, Box(0, 0, 0, 0))
    torch.testing.assert_close(swapped, plain.flip(0))
    torch.testing.assert_close(dense, plain_dense)


def test_joint_logits():
    model = timm.create_model("test_simba", num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, dense, _ = model.forward_train(x, Box(0, 0, 0, 0))
        torch.testing.assert_close(model(x), logits + 0.5 * dense.amax(1))


def test_bad_arguments():
    with pytest.raises(ValueError, match="'mlp' or 'einfft'"):
        SiMBA(channel_mixer="monarch")
    with pytest.raises(ValueError, match="no multiple of 4"):
        SiMBA(dims=(18, 32), depths=(1, 1), mlp_ratios=(2, 2), channel_mixer="einfft")
    with pytest.raises(ValueError, match="token_label=True"):
        timm.create_model("test_simba", token_label=False).forward_train(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="divisible by 32"):
        timm.create_model("test_simba").forward_train(torch.randn(1, 3, 64, 48))


@torch.no_grad()
def test_einfft_is_traced():
    mixer = EinFFT(8)
    x = torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(torch.fx.symbolic_trace(mixer)(x), mixer(x))
