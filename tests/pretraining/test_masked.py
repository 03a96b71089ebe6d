"""Masks, loss and interpolation of masked image modelling."""

import pytest
import torch

from visionssm.pretraining.interpolation import TokenInterpolation, interpolate_tokens
from visionssm.pretraining.masking import cell_errors, patchify, random_mask, reconstruction_loss, unpatchify


def test_interpolation_of_a_batch_equals_single_images():
    torch.manual_seed(0)
    x, visible, a = torch.randn(2, 11, 3), torch.rand(2, 11) < 0.4, torch.randn(3, 3) / 2
    found = interpolate_tokens(x, visible, a)
    for i in range(2):
        torch.testing.assert_close(found[i : i + 1], interpolate_tokens(x[i : i + 1], visible[i : i + 1], a))
    hidden = ~visible
    hidden[:, [0, -1]] = False
    changed = torch.where(hidden.unsqueeze(-1), torch.full_like(x, 7.0), x)
    assert torch.equal(interpolate_tokens(changed, visible, a), found), "a hidden token was read"


def test_interpolation_without_gaps_and_with_an_identity():
    x = torch.randn(1, 6, 2)
    every = interpolate_tokens(x, torch.ones(1, 6, dtype=torch.bool), torch.zeros(2, 2))
    torch.testing.assert_close(every[:, :-1], x[:, :-1])
    ends = interpolate_tokens(x, torch.zeros(1, 6, dtype=torch.bool), torch.eye(2))
    weights = torch.arange(5)[:, None] / 4
    torch.testing.assert_close(ends[0, :-1], ((1 - weights) * x[0, 0] + weights * x[0, 5]).cumsum(0))
    with pytest.raises(ValueError, match="must agree"):
        interpolate_tokens(x, torch.ones(1, 5, dtype=torch.bool), torch.eye(2))


def test_visible_tokens_stay_and_the_transition_learns():
    fill, x, visible = TokenInterpolation(3), torch.randn(2, 9, 3), torch.zeros(2, 9, dtype=torch.bool)
    visible[:, ::4] = True
    y = fill(x, visible)
    assert torch.equal(y[visible], x[visible])
    y.square().sum().backward()
    assert fill.transition.grad.abs().sum() > 0 and fill.mask_token.grad is not None


@pytest.mark.parametrize("size", [(8, 12), (4, 8, 4)])
def test_cells(size):
    x = torch.randn(2, 3, *size)
    cells = patchify(x, 4)
    assert cells.shape == (2, torch.Size(size).numel() // 4 ** len(size), 3 * 4 ** len(size))
    corner = x[(0, slice(None), *[slice(4)] * len(size))].movedim(0, -1)
    assert torch.equal(cells[0, 0].view(corner.shape), corner)
    assert torch.equal(unpatchify(cells, 4, size), x)
    with pytest.raises(ValueError, match="multiples"):
        patchify(x, 3)
    with pytest.raises(ValueError, match="not the cells"):
        unpatchify(cells[:, 1:], 4, size)


def test_only_hidden_cells_count():
    x, visible = torch.randn(2, 1, 8, 8), torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]).bool()
    found = torch.zeros_like(x)
    loss = reconstruction_loss(found, x, visible, 4)
    torch.testing.assert_close(loss, cell_errors(found, x, 4)[0, 1])
    found[1] = 9.0
    torch.testing.assert_close(reconstruction_loss(found, x, visible, 4), loss)
    assert reconstruction_loss(found, x, torch.ones_like(visible), 4) == 0
    with pytest.raises(ValueError, match="mask"):
        reconstruction_loss(found, x, visible[:, 1:], 4)


def test_masks():
    mask = random_mask(5, 16, 0.75, torch.Generator().manual_seed(0))
    assert (mask.sum(1) == 4).all() and len({tuple(row.tolist()) for row in mask}) > 1
    assert torch.equal(mask, random_mask(5, 16, 0.75, torch.Generator().manual_seed(0)))
    assert random_mask(2, 4, 0.0).all()
    for ratio, message in [(1.0, "below 1"), (-0.1, "below 1"), (0.99, "none visible")]:
        with pytest.raises(ValueError, match=message):
            random_mask(2, 4, ratio)
