"""Hydra's mixer and model beyond what every family owes: sizes, scan orders, weight decay, compared with by hand."""

import pytest
import timm
import torch

from visionssm.checkpoints import CheckpointError
from visionssm.models.hydra import Hydra, HydraMixer
from visionssm.scans import scan_table


def small(**kwargs):
    torch.manual_seed(0)
    args = dict(img_size=32, embed_dim=16, depth=2, d_state=4, head_dim=8, num_classes=5)
    return Hydra(**{**args, **kwargs}).eval()


def image(height=32, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dim", "parameters"), [(768, 3_825_224), (384, 1_010_468), (192, 280_466)])
def test_size_of_the_mixer_is_the_originals(dim, parameters):
    assert sum(p.numel() for p in HydraMixer(dim, device="meta").parameters()) == parameters


def test_every_token_reaches_every_other():
    mixer = HydraMixer(8, d_state=4, head_dim=4)
    x = torch.randn(1, 12, 8, requires_grad=True)
    y = mixer(x, 3, 4)
    for t in (0, 11):
        (grad,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        assert (grad[0].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("scan", ["vertical", "hilbert", "snake[0]_r90"])
def test_an_order_is_another_sequence_of_the_same_tokens(scan):
    x, order = torch.randn(2, 12, 16), scan_table(scan, 3, 4)[0]
    torch.manual_seed(0)
    plain, ordered = HydraMixer(16, 4, head_dim=8), HydraMixer(16, 4, head_dim=8, scan=scan)
    ordered.load_state_dict(plain.state_dict())
    torch.testing.assert_close(ordered(x, 3, 4)[:, order], plain(x[:, order], 1, 12))


def test_routes_share_their_parameters():
    model, twice = small(), small(scan="raster+raster")
    twice.load_state_dict(model.state_dict())
    torch.testing.assert_close(twice(image()), model(image()))
    four = small(scan="cross")
    four.load_state_dict(model.state_dict())
    assert not torch.allclose(four(image()), model(image()))


@pytest.mark.parametrize("scan", ["window7", "atrous2", "ms2d_low", "raster+window2"])
def test_orders_that_skip_or_repeat_tokens_are_refused(scan):
    with pytest.raises(ValueError, match="visits every token once, which .* does not on all maps; take one"):
        small(scan=scan)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (dict(head_dim=5), "32 channels must divide into heads of 5, and these into 1 groups"),
        (dict(groups=3), "and these into 3 groups"),
        (dict(d_conv=4), "d_conv must be odd"),
        (dict(scan="hilbrt"), "did you mean 'hilbert'"),
    ],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        small(**args)


def test_weight_decay_spares_what_the_original_marks():
    spared = small().no_weight_decay()
    assert {name.rpartition(".")[2] for name in spared} == {"pos_embed", "dt_bias", "A_log", "D"}
    assert len(spared) == 1 + 2 * 3


def test_weights_of_another_family_are_refused():
    vim = timm.create_model("test_vim").state_dict()
    with pytest.raises(CheckpointError):
        Hydra.checkpoint_filter_fn(vim, small())


def test_groups_and_odd_rectangles():
    model = small(groups=2)
    model(image(35, 50)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_states_are_float32_in_a_bfloat16_model():
    exact, rough = small(), small(dtype=torch.bfloat16)
    rough.load_state_dict(exact.state_dict())
    out = rough(image().bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact(image()), rtol=0.05, atol=0.05 * exact(image()).abs().max().item())
