"""What other libraries expect of every registered model: calls, resets, pools, features, graphs."""

import copy
from typing import Any, cast

import pytest
import timm
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import visionssm

PICO = visionssm.list_models("test_*")
VANILLA = ("vanilla_vmamba_tiny", dict(depths=(1, 1, 1, 1), dims=16))
MODELS: list[tuple[str, dict]] = [*((name, {}) for name in PICO), VANILLA]


def images(model: nn.Module, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, *cast(Any, model).pretrained_cfg["input_size"][:1], 64, 64)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linears, convolutions and norms, whose calls hooks and adapters rely on."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.RMSNorm)
    return {k: m for k, m in model.named_modules() if isinstance(m, kinds) or "Norm" in type(m).__name__}


@pytest.mark.parametrize("name, kwargs", MODELS)
def test_every_layer_is_called(name, kwargs):
    model = timm.create_model(name, num_classes=3, **kwargs)
    called = set()
    for key, layer in layers(model).items():
        layer.register_forward_hook(lambda *_, key=key: called.add(key))
    model(images(model, 2))
    assert not set(layers(model)) - called


@pytest.mark.parametrize("name", PICO)
def test_hooks_of_all_modules_see_every_layer(name):
    model = timm.create_model(name, num_classes=3).eval()
    called = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.add(module))
    try:
        model(images(model))
    finally:
        handle.remove()
    assert not set(layers(model).values()) - called


@pytest.mark.parametrize("name, kwargs", MODELS)
def test_weights_made_without_memory_are_all_initialised(name, kwargs):
    model = timm.create_model(name, device="meta", num_classes=3, **kwargs).to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(float("nan") if tensor.is_floating_point() else -7)
    model.init_weights()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not [
        key for key, t in tensors if not t.float().isfinite().all() or (not t.is_floating_point() and (t == -7).any())
    ]
    assert model(images(model)).isfinite().all()


@pytest.mark.parametrize("name", PICO)
@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", "fast", "fastmax"])
def test_pools_tell_what_the_classifier_sees(name, pool):
    try:
        model = timm.create_model(name, global_pool=pool, num_classes=3).eval()
    except ValueError as error:
        assert "global_pool" in str(error)
        return
    features = model.forward_features(images(model))
    width = model.forward_head(features, pre_logits=True).shape[1]
    assert width == model.head_hidden_size and model.forward_head(features).shape == (1, 3)
    model.reset_classifier(0)
    assert model.forward_head(features).shape[1] == model.head_hidden_size


@pytest.mark.parametrize("name", PICO)
@pytest.mark.parametrize("feature_cls", ["list", "dict", "getter", "hook"])
def test_feature_classes_and_checkpointing(name, feature_cls):
    try:
        model = timm.create_model(name, features_only=True, feature_cls=feature_cls)
    except ValueError as error:
        assert feature_cls in ("list", "dict") and "'getter', 'hook' or 'fx'" in str(error)
        return
    model.eval()
    x = images(model).requires_grad_()
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        outputs = model(x)
        outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
        assert len(outputs) == len(model.feature_info.channels())
        results.append(torch.autograd.grad(sum(y.square().mean() for y in outputs), x)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name, kwargs", MODELS)
def test_plain_tracing_needs_no_list_of_leaves(name, kwargs):
    model = timm.create_model(name, num_classes=3, **kwargs).eval()
    last = get_graph_node_names(model)[1][-1]
    traced = create_feature_extractor(copy.deepcopy(model), [last])
    x = images(model)
    with torch.no_grad():
        assert torch.equal(traced(x)[last], model(x))
