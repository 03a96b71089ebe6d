"""RSMamba's permutations, tags and paths."""

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.models.rsmamba import RSMamba

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small(**kwargs):
    torch.manual_seed(0)
    args = dict(embed_dim=16, depth=2, patch_size=8, stride=4, d_state=4, img_size=32, num_classes=5)
    return RSMamba(**dict(args, **kwargs))


@torch.no_grad()
def test_evaluation_repeats_itself_and_seeds_differ():
    model = small().eval()
    assert torch.equal(model(IMAGES), model(IMAGES))
    assert not torch.equal(model(IMAGES), small(seed=7).eval()(IMAGES))


@torch.no_grad()
def test_permutations_are_drawn_in_training_or_on_request():
    for model in (small().train(), small(redraw=True).eval()):
        assert not torch.equal(model(IMAGES), model(IMAGES))
        model.generator = torch.Generator().manual_seed(3)
        first = model(IMAGES)
        model.generator.manual_seed(3)
        assert torch.equal(first, model(IMAGES))


def test_a_recomputed_block_reads_the_same_permutation():
    grads = []
    for checkpointing in (False, True):
        model = small().train()
        model.generator = torch.Generator().manual_seed(3)
        model.set_grad_checkpointing(checkpointing)
        model(IMAGES).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("tag, classes", [("uc_merced", 21), ("aid", 30), ("resisc45", 45)])
def test_a_tag_chooses_classes_and_normalisation(tag, classes):
    model = timm.create_model(f"rsmamba_base.{tag}", device="meta")
    assert model.num_classes == classes and model.pretrained_cfg["tag"] == tag
    assert model.pretrained_cfg["mean"] != timm.create_model("test_rsmamba").pretrained_cfg["mean"]


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_class_token(place):
    model = small(class_token=place, global_pool="token").eval()
    assert model(IMAGES).shape == (2, 5) and model.fc_norm is None
    with pytest.raises(ValueError, match="no place for a class token"):
        small(class_token=place, scan="cross")
