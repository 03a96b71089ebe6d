"""Restoration models: any size, gradients everywhere, the authors' files completely or not at all."""

import copy
import json
from pathlib import Path

import pytest
import torch

from visionssm.errors import CheckpointError
from visionssm.restoration import create_model, list_models
from visionssm.restoration.mambairv2 import AttentiveScan

KEYS = Path(__file__).resolve().parents[1] / "data" / "keys"
# published sizes: name of the model and what the record's names leave open
PUBLISHED = {
    **{f"mambair_sr_x{scale}": ("mambair_sr", dict(scale=scale)) for scale in (2, 3, 4)},
    **{f"mambair_light_x{scale}": ("mambair_light", dict(scale=scale)) for scale in (2, 3, 4)},
    "mambair_dn_color": ("mambair_dn", {}),
    "mambair_jpeg": ("mambair_jpeg", {}),
    **{f"eamamba_sr_x{scale}": ("eamamba_sr_light", dict(scale=scale)) for scale in (2, 3, 4)},
    "eamamba_unet": ("eamamba", {}),
    "mambairv2_light_x2": ("mambairv2_light", dict(scale=2)),
    "mambairv2_small_x4": ("mambairv2_small", {}),
    "mambairv2_base_x4": ("mambairv2", {}),
    "mambairv2_large_x4": ("mambairv2_large", {}),
    "mambairv2_dn_color": ("mambairv2_dn", {}),
    "mambairv2_jpeg": ("mambairv2_jpeg", {}),
    "mambair_realdn": ("mambair_unet", {}),
}
PICOS = list_models("test_*")


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_files_fit_exactly(variant):
    record = json.loads((KEYS / f"{variant}.json").read_text())
    name, args = PUBLISHED[variant]
    model = create_model(name, device="meta", **args)
    assert sum(p.numel() for p in model.parameters()) == record["params"]
    state = {n: torch.empty(shape, device="meta") for n, shape in record["keys"]}
    nested = {"params": {f"module.{n}": v for n, v in state.items()}}
    assert model.checkpoint_filter_fn(nested, model).keys() == model.state_dict().keys()
    with pytest.raises(CheckpointError, match="missing from the file"):
        model.checkpoint_filter_fn(dict(list(state.items())[:-1]), model)


@pytest.mark.parametrize("name", PICOS)
def test_any_size_and_all_gradients(name):
    torch.manual_seed(0)
    model = create_model(name)
    x = torch.rand(2, model.in_chans, 13, 18)
    torch.manual_seed(1)  # some draw while they train
    y = model(x)
    assert y.shape == (2, model.in_chans, 13 * model.scale, 18 * model.scale)
    y.square().mean().backward()
    untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not untouched
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    torch.manual_seed(1)
    model(x).square().mean().backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, grads[n])


@pytest.mark.parametrize("name", PICOS)
def test_own_weights_come_back_from_a_file(name, tmp_path):
    model = create_model(name).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
    again = create_model(name, checkpoint=tmp_path / "own.pth").eval()
    x = torch.rand(1, model.in_chans, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
    torch.save({"params": {"conv_first.weight": torch.ones(3)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="other.pth does not fit"):
        create_model(name, checkpoint=tmp_path / "other.pth")


@pytest.mark.parametrize("name", PICOS)
def test_wrong_images_are_named(name):
    model = create_model(name)
    with pytest.raises(ValueError, match="channels"):
        model(torch.rand(1, model.in_chans + 1, 16, 16))
    with pytest.raises(ValueError, match="floating-point images"):
        model(torch.rand(model.in_chans, 16, 16))
    if model.size_multiple > 1:
        with pytest.raises(ValueError, match="mirrors images"):
            model(torch.rand(1, model.in_chans, 1, 16))
        with pytest.raises(ValueError, match="multiples of"):
            create_model(name, pad=False)(torch.rand(1, model.in_chans, 13, 16))


def test_wrong_names_are_named():
    with pytest.raises(ValueError, match="did you mean 'mambair_light'"):
        create_model("mambair_lite")
    with pytest.raises(TypeError, match="did you mean 'scale'"):
        create_model("mambair_sr", scal=2)
    with pytest.raises(ValueError, match="scale must be 3 or a power of 2"):
        create_model("test_mambair", scale=5)
    with pytest.raises(ValueError, match="keeps the size"):
        create_model("mambair_dn", scale=2, depths=(1,))
    with pytest.raises(ValueError, match="dim must be at least 30"):
        create_model("mambair_sr", dim=24)
    with pytest.raises(ValueError, match="both have as many channels"):
        create_model("mambair_unet", in_chans=6)


def test_images_are_mirrored_at_the_far_sides():
    model = create_model("test_mambair_unet").eval()
    x = torch.rand(1, 3, 12, 21)
    mirrored = torch.cat([x, x.flip(2)], 2)[:, :, :16]
    mirrored = torch.cat([mirrored, mirrored.flip(3)], 3)[..., :24]
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(mirrored)[..., :12, :21])


def test_dual_pixel_form_reads_six_channels():
    model = create_model("test_mambair_unet", in_chans=6, dual_pixel=True).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 6, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", PICOS)
def test_weights_made_without_memory(name):
    model = create_model(name, device="meta").to_empty(device="cpu")
    for value in [*model.parameters(), *model.buffers()]:
        value.data.fill_(torch.nan if value.is_floating_point() else -1)
    model.init_weights()
    assert not [key for key, value in model.state_dict().items() if not value.isfinite().all()]
    fresh = dict(create_model(name).named_buffers())
    for key, value in model.named_buffers():
        assert torch.equal(value, fresh[key]), key


@torch.no_grad()
def test_float16_sorts_by_the_same_classes():
    """Classes nearly as likely as each other, as at the beginning of a training."""
    torch.manual_seed(0)
    scan = AttentiveScan(24, 48, 8, 8, 16, sorted_prompt=True, gumbel_eval=False).eval()
    for layer in (scan.route[0], scan.route[2]):
        layer.weight.normal_(std=0.02)
        layer.bias.zero_()
    x, states = torch.randn(1, 16, 16, 24), torch.randn(8, 8)
    expected = scan(x, states)
    found = copy.deepcopy(scan).half()(x.half(), states.half()).float()
    moved = ((found - expected).abs().amax(-1) > 0.1 * expected.std()).float().mean()
    assert moved < 0.05  # of the tokens
