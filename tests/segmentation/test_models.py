"""Segmentation models: any size, gradients everywhere, the authors' files completely or not at all."""

import json
from pathlib import Path

import pytest
import torch

from visionssm.errors import CheckpointError
from visionssm.segmentation import create_model, list_models

KEYS = Path(__file__).resolve().parents[1] / "data" / "keys"
# published sizes: name of the model and what the record's names leave open
PUBLISHED = {
    "vmunet": ("vm_unet", {}),
    "mhsvm_unet_3h": ("mhsvm_unet", dict(heads=3)),
    "mhsvm_unet_4h": ("mhsvm_unet", dict(heads=4)),
    "ultralight_vm_unet": ("ultralight_vm_unet", {}),
    "lightmunet_2d": ("lightm_unet", {}),
    "lightmunet_3d": ("lightm_unet", dict(spatial_dims=3)),
}
PICOS = list_models("test_*")


def image_of(model, side=None):
    """An image whose sides are no multiples of anything."""
    if model.spatial_dims == 3:
        return torch.randn(1, model.in_chans, *(side or (17, 20, 33)))
    return torch.randn(1, model.in_chans, *(side or (61, 79)))


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_files_fit_exactly(variant):
    record = json.loads((KEYS / f"{variant}.json").read_text())
    name, args = PUBLISHED[variant]
    model = create_model(name, device="meta", **args)
    assert sum(p.numel() for p in model.parameters()) == record["params"]
    prefix, aliases = record.get("checkpoint_prefix", ""), record.get("aliases", {})
    state = {n: torch.empty(shape, device="meta") for n, shape in record["keys"] if n not in aliases}
    state |= {n: state[first] for n, first in aliases.items()}
    nested = {"state_dict": {f"module.{prefix}{n}": v for n, v in state.items()}}
    assert model.checkpoint_filter_fn(nested, model).keys() == model.state_dict().keys()
    missing = dict(list(state.items())[1:])
    if next(iter(state)) not in aliases.values():
        with pytest.raises(CheckpointError, match="missing from the file"):
            model.checkpoint_filter_fn(missing, model)


@pytest.mark.parametrize("name", PICOS)
def test_any_size_and_all_gradients(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=3)
    x = image_of(model)
    y = model(x)
    assert y.shape == (1, 3, *x.shape[2:])
    y.square().mean().backward()
    untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not untouched
    model.eval()
    padded = torch.nn.functional.pad(
        x,
        [a for s, m in zip(x.shape[:1:-1], model.size_multiple[::-1], strict=True) for a in (0, -s % m)],
    )
    with torch.no_grad():
        whole = model(padded)
        inside = tuple(slice(0, side) for side in x.shape[2:])
        torch.testing.assert_close(model(x), whole[(slice(None), slice(None), *inside)])


@pytest.mark.parametrize("name", PICOS)
def test_own_weights_come_back_from_a_file(name, tmp_path):
    model = create_model(name).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
    again = create_model(name, checkpoint=tmp_path / "own.pth").eval()
    x = image_of(model)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
    with pytest.raises(CheckpointError, match="num_classes"):
        create_model(name, num_classes=7, checkpoint=tmp_path / "own.pth")


@pytest.mark.parametrize("name", PICOS)
def test_wrong_images_are_named(name):
    model = create_model(name)
    with pytest.raises(ValueError, match="channels"):
        model(image_of(model).repeat(1, 2, *(1,) * model.spatial_dims))
    with pytest.raises(ValueError, match="floating-point images"):
        model(image_of(model)[0])
    with pytest.raises(ValueError, match="multiples of"):
        create_model(name, pad=False)(image_of(model))


def test_wrong_names_are_named():
    with pytest.raises(ValueError, match="did you mean 'vm_unet'"):
        create_model("vmunet")
    with pytest.raises(TypeError, match="did you mean 'num_classes'"):
        create_model("vm_unet", classes=2, num_clases=3)
    with pytest.raises(ValueError, match="num_classes"):
        create_model("test_vm_unet", num_classes=0)


def test_gray_images_have_three_channels_in_vm_unet():
    model = create_model("test_vm_unet", in_chans=1).eval()
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), model.forward_logits(x.repeat(1, 3, 1, 1)))


def test_files_of_another_mixer_are_refused(tmp_path):
    torch.save(create_model("test_mhsvm_unet").state_dict(), tmp_path / "mhs.pth")
    torch.save(create_model("test_vm_unet").state_dict(), tmp_path / "ss2d.pth")
    with pytest.raises(CheckpointError, match="mixer='mhs'"):
        create_model("test_vm_unet", checkpoint=tmp_path / "mhs.pth")
    with pytest.raises(CheckpointError, match="mixer='ss2d'"):
        create_model("test_mhsvm_unet", checkpoint=tmp_path / "ss2d.pth")
    with pytest.raises(CheckpointError, match="heads=4"):
        create_model("test_mhsvm_unet", heads=3, checkpoint=tmp_path / "mhs.pth")


def test_a_classifier_fills_encoder_and_decoder(tmp_path, caplog):
    from visionssm.models.vmamba import VMamba

    def classifier(**args):
        first = dict(d_state=16, ssm_ratio=2.0, gated=True, conv_bias=True, mlp_ratio=0.0)
        return VMamba((16, 32, 64, 128), (1, 1, 3, 1), num_classes=5, **{**first, "downsample": "merge", **args})

    first, second = classifier(stem="patch"), VMamba((16, 32, 64, 128), (1, 1, 1, 1), num_classes=5)
    torch.save({"model": first.state_dict()}, tmp_path / "first.pth")
    torch.save({"model": second.state_dict()}, tmp_path / "second.pth")
    with caplog.at_level("INFO", logger="visionssm"):
        model = create_model("test_vm_unet", encoder_weights=tmp_path / "first.pth")
    assert len([r for r in caplog.records if "tensors fill the encoder's" in r.message]) == 1
    theirs = first.stages[2].blocks[0].mixer.in_proj.weight
    assert torch.equal(model.encoder.stages[2].blocks[0].mixer.in_proj.weight, theirs)
    assert torch.equal(model.decoder.stages[1].blocks[0].mixer.in_proj.weight, theirs)
    with pytest.raises(CheckpointError, match="second generation"):
        create_model("test_vm_unet", encoder_weights=tmp_path / "second.pth")
    with pytest.raises(CheckpointError, match="encoder_weights"):
        create_model("test_vm_unet", checkpoint=tmp_path / "first.pth")
    with pytest.raises(CheckpointError, match="other widths"):
        create_model("test_vm_unet", dims=(24, 48, 96, 192), encoder_weights=tmp_path / "first.pth")


def test_export(tmp_path):
    from visionssm.analysis.exporting import export_model

    model = create_model("test_ultralight_vm_unet")
    assert export_model(model, torch.randn(2, 3, 32, 64), tmp_path / "model.pt2") < 1e-4


@pytest.mark.parametrize("name", ["test_vm_unet", "test_ultralight_vm_unet", "test_lightm_unet_3d"])
def test_runs_in_a_sliding_window(name):
    inferers = pytest.importorskip("monai.inferers")
    model = create_model(name).eval()
    x = image_of(model)
    with torch.no_grad():
        y = inferers.sliding_window_inference(x, (16,) * model.spatial_dims, 1, model)
    assert y.shape == (1, model.num_classes, *x.shape[2:])
