"""Orders of a learned importance, and projections of chosen signs."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import visionssm  # noqa: F401
from visionssm.models._reorder import TokenReorder, restore_order, sort_matrix
from visionssm.models.mambavision import WindowMixer
from visionssm.pretraining.constrained import constrained_projection, interaction_eigenvalues


def test_soft_order_sums_to_one_and_hardens():
    score = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -4.0]], dtype=torch.float64)
    soft = sort_matrix(score)
    torch.testing.assert_close(soft.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    hard = sort_matrix(score, tau=0.05)
    expected = torch.eye(3, dtype=torch.float64)[torch.tensor([[1, 2, 0], [2, 0, 1]])]
    torch.testing.assert_close(hard, expected, atol=1e-3, rtol=0)


def test_hard_order_is_a_permutation_that_can_be_undone():
    torch.manual_seed(0)
    u, reorder = torch.randn(2, 7, 4), TokenReorder(4, hard=True)
    trained, places = reorder(u, u)
    with torch.no_grad():
        exact, again = reorder(u, u)
    assert torch.equal(places, again) and torch.equal(restore_order(exact, places), u)
    torch.testing.assert_close(trained, exact)
    (trained * torch.randn_like(u)).sum().backward()
    assert reorder.importance.weight.grad.abs().sum() > 0
    nn.init.zeros_(reorder.importance.weight)  # ties keep their order
    with torch.no_grad():
        assert torch.equal(reorder(u, u)[0], u)


@torch.no_grad()
def test_reordered_mixer_equals_gather_mix_and_gather_back():
    torch.manual_seed(0)
    mixer = WindowMixer(16, 3, d_conv=1, reorder=TokenReorder(8, hard=True)).eval()
    x = torch.randn(2, 9, 16)
    u = mixer.act(mixer.conv(mixer.in_proj(x).mT)).mT[..., :8]
    places = mixer.reorder.score(mixer.step_sizes(u)).argsort(dim=1, stable=True)
    index = places.unsqueeze(-1).expand_as(x)
    expected, found = x.gather(1, index), mixer(x)
    mixer.reorder = None
    torch.testing.assert_close(found, restore_order(mixer(expected), places))
    assert not torch.allclose(found, mixer(x))


def test_models_reorder_once_in_each_stage_of_windows():
    model = timm.create_model("test_mambavision", reorder="soft", num_classes=3)
    found = [name for name, module in model.named_modules() if isinstance(module, TokenReorder)]
    assert found == ["stages.2.blocks.0.mixer.reorder", "stages.3.blocks.0.mixer.reorder"]
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(model.get_submodule(name).importance.weight.grad is not None for name in found)


@pytest.mark.parametrize(("signs", "positive"), [("positive", 3), ("negative", 0), ("mixed", 1)])
def test_signs_of_eigenvalues(signs, positive):
    free = torch.randn(2 + 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = constrained_projection(free, 2, signs)
    b, c = weight[2:].split(3)
    found = interaction_eigenvalues(b, c)
    full = (c.mT @ b).numpy()
    values = np.linalg.eigvalsh((full + full.T) / 2)
    assert (values > 1e-9).sum() == positive and (values < -1e-9).sum() == 3 - positive
    np.testing.assert_allclose(
        np.sort(found.numpy()[np.abs(found.numpy()) > 1e-9]), values[np.abs(values) > 1e-9], atol=1e-9
    )
    both = constrained_projection(torch.stack([free, free]), 2, signs)  # one for each route
    assert torch.equal(both[1], weight)


def test_eigenvalues_of_any_projections():
    b, c = torch.randn(2, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    full = (c.mT @ b).numpy()
    values = np.linalg.eigvalsh((full + full.T) / 2)[::-1]
    expected = [*values[:2], *values[-2:]]
    np.testing.assert_allclose(interaction_eigenvalues(b, c).numpy(), expected, atol=1e-10)


def test_refusals():
    with pytest.raises(ValueError, match="positive, got 0"):
        sort_matrix(torch.zeros(1, 3), tau=0)
    with pytest.raises(ValueError, match="4096"):
        sort_matrix(torch.zeros(1, 5000))
    with pytest.raises(ValueError, match="signs"):
        constrained_projection(torch.zeros(8, 5), 2, "none")
    with pytest.raises(ValueError, match="d at least N"):
        constrained_projection(torch.zeros(8, 2), 2, "mixed")
    with pytest.raises(ValueError, match="raster"):
        WindowMixer(16, 3, "bidirectional", reorder=TokenReorder(8))
    with pytest.raises(ValueError, match="'soft', 'hard' or None"):
        timm.create_model("test_mambavision", reorder="firm")
