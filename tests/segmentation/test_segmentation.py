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
    "msvmunet_tiny": ("msvm_unet", {}),
    "msvmunet_small": ("msvm_unet", dict(encoder="vmamba_small_s1l20")),
    "umamba_bot_7stages": ("umamba_bot", dict(num_classes=14)),
    "umamba_enc_7stages": ("umamba_enc", dict(num_classes=14, input_size=(320, 320))),
    "umamba_enc_8stages": (
        "umamba_enc",
        dict(num_classes=14, input_size=(512, 512), features=(32, 64, 128, 256, 512, 512, 512, 512)),
    ),
    "segmamba": ("segmamba", {}),
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
    # all heads of U-Mamba have a part in its training only if they are asked for
    model = create_model(name, num_classes=3, **({"deep_supervision": True} if "umamba" in name else {}))
    x = image_of(model)
    ys = model(x) if "umamba" in name else (model(x),)
    assert ys[0].shape == (1, 3, *x.shape[2:])
    sum(y.square().mean() for y in ys).backward()
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
def test_single_precision_is_enough(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    x = image_of(model)
    with torch.no_grad():
        y = model(x)
        exact = model.double()(x.double())
    torch.testing.assert_close(y.double(), exact, atol=5e-3 * max(1.0, float(exact.std())), rtol=0)


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


def test_two_names_of_one_tensor_must_agree(tmp_path):
    model = create_model("test_umamba_bot")
    state = model.state_dict()
    # as the authors' files have it: everything of the encoder a second time within the decoder
    file = {"decoder.encoder.stem.0.conv1.weight": torch.zeros(2), "encoder.stem.0.conv1.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match="two names of one tensor"):
        model.checkpoint_filter_fn(file, model)
    torch.save({"network_weights": state, "init_args": {"plans": {}}}, tmp_path / "checkpoint_final.pth")
    assert (
        create_model("test_umamba_bot", checkpoint=tmp_path / "checkpoint_final.pth").state_dict().keys()
        == state.keys()
    )


def test_umamba_enc_is_for_one_size():
    with pytest.raises(ValueError, match="needs input_size"):
        create_model("test_umamba_enc", input_size=None)
    with pytest.raises(ValueError, match="built for images of"):
        create_model("test_umamba_enc", features=(8, 16, 24, 512))(torch.randn(1, 1, 32, 32))
    free = create_model("test_umamba_enc", features=(8, 16, 24, 512), channel_tokens=False, input_size=None).eval()
    with torch.no_grad():
        assert free(torch.randn(1, 1, 41, 33)).shape == (1, 2, 41, 33)
    with pytest.raises(ValueError, match="take a larger one"):
        create_model("test_umamba_bot")(torch.randn(1, 1, 4, 4))


@pytest.mark.parametrize("layout", ["old", "new"])
def test_plans_of_nnunet(layout):
    from visionssm.segmentation import from_nnunet_plans

    strides, kernels = [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    if layout == "old":
        plan = dict(pool_op_kernel_sizes=strides, conv_kernel_sizes=kernels, UNet_base_num_features=8)
        plan |= dict(unet_max_num_features=16, n_conv_per_stage_encoder=[2, 2, 2], n_conv_per_stage_decoder=[2, 2])
    else:
        kwargs = dict(features_per_stage=[8, 16, 16], strides=strides, kernel_sizes=kernels)
        kwargs |= dict(n_conv_per_stage=[2, 2, 2], n_conv_per_stage_decoder=[2, 2])
        plan = {"architecture": {"arch_kwargs": kwargs}}
    configurations = {"3d_fullres": {"patch_size": [8, 16, 16], **plan}, "3d_other": {"inherits_from": "3d_fullres"}}
    model = from_nnunet_plans({"configurations": configurations}, "3d_other", num_classes=3, in_chans=2).eval()
    assert model.size_multiple == (2, 4, 4) and model.stages[2][0].conv1.out_channels == 16
    with torch.no_grad():
        assert model(torch.randn(1, 2, 5, 9, 13)).shape == (1, 3, 5, 9, 13)
    with pytest.raises(ValueError, match="3d_fullres"):
        from_nnunet_plans({"configurations": configurations}, "2d")


def test_msvm_unet_takes_any_backbone_of_four_maps():
    model = create_model("msvm_unet", encoder="test_convnext", num_classes=2).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 50, 70)).shape == (1, 2, 50, 70)
    with pytest.raises(ValueError, match="out_indices"):
        create_model("msvm_unet", encoder="test_resnet", num_classes=2)


def test_slices_of_segmamba():
    fixed = create_model("test_segmamba", slices=(16, 8, 4, 2)).eval()
    free = create_model("test_segmamba").eval()
    free.load_state_dict(fixed.state_dict())
    x = torch.randn(1, 4, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(fixed(x), free(x))
    with pytest.raises(ValueError, match="equal slices"):
        create_model("test_segmamba", slices=(7, 8, 4, 2))(x)


def test_export(tmp_path):
    from visionssm.analysis.exporting import export_model

    model = create_model("test_ultralight_vm_unet")
    assert export_model(model, torch.randn(2, 3, 32, 64), tmp_path / "model.pt2").difference < 1e-4


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
