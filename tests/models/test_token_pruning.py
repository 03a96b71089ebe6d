"""Plain models that leave out tokens between blocks."""

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.analysis.flops import count
from visionssm.layers import MambaMixer
from visionssm.layers.token_pruning import kept_along
from visionssm.scans import scan_table

NAMES = ("test_vim", "test_mambareg", "test_shufflemamba")


def make(name="test_vim", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **kwargs).eval()


def images(batch=2):
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_a_share_of_1_changes_nothing(name):
    plain, pruned = make(name), make(name, pruning=((1, 1.0),))
    pruned.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(images()), pruned(images()))


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_images_keep_sets_of_their_own(name, align):
    """A batch gives what its images give alone, and costs less than the whole model."""
    model = make(name, pruning=((0, 0.7), (2, 0.5)), pruning_align=align)
    x = images()
    with torch.no_grad():
        together = model(x)
        torch.testing.assert_close(together, torch.cat([model(one[None]) for one in x]))
        assert not torch.allclose(together, make(name)(x), atol=1e-3)
        tokens = model.forward_features(x)
    patches = 16
    assert tokens.shape[1] == 6 + model.num_extra_tokens, "16 * 0.7 is 12, 12 * 0.5 is 6"
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        features = timm.create_model(name, features_only=True, pruning=((0, 0.7),))(x)
    assert all(m.shape[2] * m.shape[3] == patches for m in maps) and features[-1].shape == maps[-1].shape
    assert count(model, (3, 64, 64)).multiply_adds < 0.9 * count(make(name), (3, 64, 64)).multiply_adds


@pytest.mark.parametrize("scan", ["bidirectional", "cross", "snake"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_aligned_mixer_is_the_mixer_with_empty_tokens(scan, dtype):
    """Without convolution, tokens that are left out are steps of the table that read -1, in every route's order."""
    torch.manual_seed(0)
    mixer = MambaMixer(8, scan, d_state=4, d_conv=1, average=True, dtype=dtype)
    torch.nn.init.normal_(mixer.ssm.dt_bias)
    torch.nn.init.normal_(mixer.ssm.x_proj_weight)
    torch.nn.init.zeros_(mixer.conv_bias)  # which a step of -1 would be given too
    x, kept = torch.randn(2, 12, 8, dtype=dtype), torch.tensor([[0, 3, 4, 5, 11], [1, 2, 6, 9, 10]])
    table = scan_table(scan, 3, 4)
    with torch.no_grad():
        part = x.gather(1, kept.unsqueeze(-1).expand(-1, -1, 8))
        found = mixer(part, 3, 4, kept)
        assert not torch.allclose(found, mixer(part, 3, 4, kept, False), atol=1e-4), "nothing decayed in the gaps"
        for i, places in enumerate(kept):
            order = torch.where(torch.isin(table, places), table, -1)
            mixer.order = lambda *_, order=order: order
            torch.testing.assert_close(found[i], mixer(x[i : i + 1], 3, 4)[0, places])
            del mixer.order


def test_tokens_along_a_route():
    tokens, skipped = kept_along(torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]), torch.tensor([[0, 3]]))
    assert tokens.tolist() == [[[0, 1], [1, 0]]] and skipped.tolist() == [[[0, 2], [1, 2]]]


def test_strong_patches_and_the_class_token_stay():
    """A planted patch is kept where it is, not at its mirror image; the class token stays in every image."""
    model = make(pruning=((0, 0.25),))
    block, n, token = model.blocks[0], 16, 8
    y = torch.zeros(2, n + 1, block.mixer.in_proj.out_features // 2)
    y[0, 2], y[1, 14] = 9.0, 9.0
    y[:, token] = -5.0
    y[:, 4:7] = 1.0
    block.mixer.merge = lambda *_: y
    stream = torch.randn(2, n + 1, 48)
    _, _, stay = model.run_pruning_block(0, stream, model.embed(images())[1])
    assert stay.tolist() == [[2, 4, 5, 6, token], [4, 5, 6, token, 14]]


def test_gradients_reach_everything():
    model = make(pruning=((1, 0.5),)).train()
    model.set_grad_checkpointing()
    model(images()).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert make(pruning=((1, 0.01),))(images()).isfinite().all(), "one patch is left"
    odd = make(img_size=(48, 80), pruning=((1, 0.5),))
    assert odd(torch.randn(1, 3, 48, 80)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pruning": ((1, 0.0),)}, "above 0"),
        ({"pruning": ((1, 1.5),)}, "above 0"),
        ({"pruning": ((9, 0.5),)}, "0 to 3"),
        ({"pruning": ((2, 0.5), (1, 0.5))}, "must grow"),
        ({"pruning": (0.5,)}, "pairs"),
        ({"pruning": ((1, 0.5),), "pruning_score": "max"}, "pruning_score"),
        ({"pruning": ((1, 0.5),), "shuffle_rate": 0.1}, "shuffle_rate"),
        ({"pruning": ((1, 0.5),), "scan": "window3"}, "skip or repeat"),
        ({"pruning": ((1, 0.5),), "removed": ["blocks.1"]}, "scores the tokens"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_other_families_say_so():
    with pytest.raises(ValueError, match="PlainMamba cannot prune"):
        make("test_plainmamba", pruning=((1, 0.5),))
    with pytest.raises(TypeError, match="pruning"):
        make("test_vmamba", pruning=((1, 0.5),))


@pytest.mark.slow
def test_it_compiles_and_exports():
    model, x = make(pruning=((1, 0.5),)), images()
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


@pytest.mark.parametrize("name", ["test_vim", "test_vmamba"])
def test_mixers_are_traced_by_fx(name):
    """What pruning, rewriting and quantising look at in a mixer is decided before data comes."""
    plain = timm.create_model(name, features_only=True, out_indices=(0, 1)).eval()
    traced = timm.create_model(name, features_only=True, feature_cls="fx", out_indices=(0, 1)).eval()
    assert len(traced(images(1))) == len(plain(images(1))) == 2
