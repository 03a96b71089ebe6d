"""Mamba2D's checkpoints as its training writes them, and its options."""

import json
from pathlib import Path

import pytest
import timm
import torch

import visionssm
from visionssm.models import CheckpointError
from visionssm.models.mamba2d import Mamba2D, MapAttention, WavefrontMixer

DATA = Path(__file__).resolve().parent.parent / "data"
VARIANTS = [n for n in visionssm.list_models("mamba2d_*")]


def keys_of(name):
    return json.loads((DATA / "keys" / f"{name}.json").read_text())["keys"]


def small(**kwargs) -> Mamba2D:
    torch.manual_seed(0)
    args = dict(dims=(16, 32), depths=(2, 1), mixers=("wavefront_local", "attention"), scaled=(True, False))
    return Mamba2D(**{**args, "d_state": 4, "num_classes": 10, **kwargs}).eval()


def published(model):
    """The model's weights under the original's names."""
    out = {}
    for name, value in model.state_dict().items():
        for ours, theirs in (
            ("head.norm1.", "norm."),
            ("head.norm2.", "head.norm."),
            ("head.fc.", "head.fc2."),
            ("stem.conv.", "ds.stem.conv."),
            ("stem.norm.", "ds.stem.post_norm.norm."),
            ("stages.1.downsample.norm.", "ds.ds1.pre_norm.norm."),
            ("stages.1.downsample.", "ds.ds1."),
            ("stages.0.norm.", "stages.0.2."),
            ("stages.1.norm.", "stages.1.1."),
            (".blocks.", "."),
            (".skip1", ".res_scale1.scale"),
            (".skip2", ".res_scale2.scale"),
            (".mlp.", ".MLP."),
            (".mixer.local.norm.", ".mixer.local_norm."),
            (".mixer.local.conv.", ".mixer.local_path.dwconv."),
            (".mixer.local.fc", ".mixer.local_path.pwconv"),
            (".mixer.local.", ".mixer.local_path."),
            ("A_log_top", "AT_log"),
            ("A_log_left", "AL_log"),
            ("dt_proj_top", "dt_projT"),
            ("dt_proj_left", "dt_projL"),
            (".mixer.", ".token_mixer."),
        ):
            name = name.replace(ours, theirs)
        out[f"backbone.{name}" if name.startswith(("ds.", "stages.")) else name] = value
    return out


LAYOUTS = {
    "alone": lambda s: s,
    "Lightning": lambda s: {"state_dict": s, "epoch": 299, "pytorch-lightning_version": "2.1.0", "callbacks": {}},
    "compiled backbone": lambda s: {
        "state_dict": {k.replace("backbone.", "backbone._orig_mod."): v for k, v in s.items()}
    },
}


@pytest.mark.parametrize("release", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(layout, release):
    model = small(release=release)
    loaded = model.checkpoint_filter_fn(LAYOUTS[layout](published(model)), small(release=release))
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", VARIANTS)
def test_published_names_and_shapes(name):
    model = timm.create_model(name, device="meta")
    state = {k: torch.empty(shape, device="meta") for k, shape in keys_of(name)}
    converted = model.checkpoint_filter_fn(state, model)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_another_release_and_family_are_refused():
    state = {k: torch.empty(shape, device="meta") for k, shape in keys_of("mamba2d_tiny_v1")}
    tiny = timm.create_model("mamba2d_tiny", device="meta")
    with pytest.raises(CheckpointError, match="downsample.norm"):
        tiny.checkpoint_filter_fn(state, tiny)
    vmamba = timm.create_model("vmamba_tiny_s1l8", device="meta")
    with pytest.raises(CheckpointError, match="names are those of a Mamba2D file"):
        vmamba.checkpoint_filter_fn(state, vmamba)


def test_weight_decay_spares_what_each_release_spared():
    spared = small().no_weight_decay()
    assert {name.rpartition(".")[2] for name in spared} == {"A_log_top", "A_log_left"} and len(spared) == 4
    assert not small(release=1).no_weight_decay()


def test_flipped_mixer_is_the_turned_one():
    torch.manual_seed(0)
    plain, flipped = (WavefrontMixer(8, 8, 2, 1, local=False, flip=flip) for flip in (False, True))
    flipped.load_state_dict(plain.state_dict())
    x = torch.randn(1, 4, 5, 8)
    torch.testing.assert_close(flipped(x), plain(x.flip((1, 2))).flip((1, 2)))
    assert not torch.allclose(flipped(x), plain(x))


def test_both_directions_begin_with_the_same_step_sizes():
    mixer = WavefrontMixer(8, 8, 2, 1)
    assert torch.equal(mixer.dt_proj_top.bias, mixer.dt_proj_left.bias)
    assert not torch.equal(mixer.dt_proj_top.weight, mixer.dt_proj_left.weight)


def test_attention_knows_positions_only_when_rotary():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, 40)
    for rotary in (True, False):
        layer = MapAttention(40, rotary=rotary)
        same = torch.allclose(layer(x.flip(2)).flip(2), layer(x), atol=1e-6)
        assert same == (not rotary)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(release=3), "release must be 1 or 2, got 3"),
        (dict(mixers=("wavefront", "attn")), "mixers must be of wavefront, wavefront_local, attention, got 'attn'"),
        (dict(mixers=("wavefront",)), "must be of one length, got 1, 2 and 2"),
        (dict(global_pool="catavgmax"), "global_pool must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_features_only_leaves_no_unused_weights():
    model = timm.create_model("test_mamba2d", features_only=True)
    sum(y.square().sum() for y in model(torch.randn(2, 3, 32, 48))).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
