"""Leaving out tokens."""

import pytest
import torch
import torch.nn.functional as F

from visionssm.compression.pruning import aligned_scan, select_tokens, skipped_tokens, token_scores
from visionssm.ops import selective_scan


@pytest.mark.parametrize("reverse", [False, True])
def test_aligned_scan_is_the_scan_with_empty_tokens(reverse):
    """The operator's entries of -1 are tokens without features; images keep sets of their own."""
    torch.manual_seed(0)
    b, length, d, n = 2, 9, 3, 4
    dd = dict(dtype=torch.float64)
    u, raw, bias = torch.randn(b, length, d, **dd), torch.randn(b, length, d, **dd), torch.randn(d, **dd)
    rates, skip = -torch.rand(d, n, **dd), torch.randn(d, **dd)
    b_in, c_out = torch.randn(2, b, length, n, **dd)
    places = torch.tensor([[0, 3, 4, 8], [1, 2, 5, 6]])
    gaps = skipped_tokens(places, length, reverse).unsqueeze(-1) * F.softplus(bias)
    parts = [t.gather(1, places.unsqueeze(-1).expand(-1, -1, t.shape[-1])) for t in (u, raw, b_in, c_out)]
    steps = [part.flip(1) if reverse else part for part in (*parts, gaps)]
    found = aligned_scan(steps[0], F.softplus(steps[1] + bias), rates, *steps[2:4], steps[4], skip)
    for i in range(b):
        order = torch.full((1, length), -1, dtype=torch.int32)
        order[0, places[i]] = places[i].int()
        order = order.flip(1) if reverse else order
        full = selective_scan(
            u[i : i + 1], raw[i : i + 1], rates, b_in[i : i + 1], c_out[i : i + 1], skip, bias, order=order
        )
        expected = full[0, places[i]]
        torch.testing.assert_close(found[i], expected.flip(0) if reverse else expected, atol=1e-12, rtol=1e-12)


def test_selection():
    score = torch.tensor([[0.1, 5.0, -9.0, 5.0, 1.0], [3.0, 2.0, 1.0, 0.0, -5.0]])
    assert select_tokens(score, 0.5).tolist() == [[1, 3, 4], [0, 1, 2]]
    kept = select_tokens(score, 0.25, torch.tensor([2, 4]))
    assert kept.tolist() == [[1, 2], [0, 4]], "a class token was lost, or the first of equals"
    assert select_tokens(score, 1.0).tolist() == [list(range(5))] * 2
    assert select_tokens(torch.zeros(1, 10), 0.7).shape == (1, 7)
    assert token_scores(torch.tensor([[[1.0, -2.0]]])).item() == 1 and token_scores(-torch.ones(1, 1, 2), False) == -2
    assert skipped_tokens(torch.tensor([[1, 2, 5]]), 8).tolist() == [[1, 0, 2]]
    assert skipped_tokens(torch.tensor([[1, 2, 5]]), 8, reverse=True).tolist() == [[0, 2, 2]]


def test_refusals():
    for share in (0.0, 1.2):
        with pytest.raises(ValueError, match="share"):
            select_tokens(torch.zeros(1, 4), share)
    with pytest.raises(ValueError, match="from 0 to 3"):
        select_tokens(torch.zeros(1, 4), 0.5, torch.tensor([4]))
    x = torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match="one shape"):
        aligned_scan(x, x, -torch.ones(2, 1), x[..., :1], x[..., :1], x[:, 1:])
