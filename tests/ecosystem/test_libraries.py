"""Libraries that take any timm model, with every pico model: a few lines each, as their users write them.

`make ecosystem` installs them and runs these.
"""

import copy

import pytest
import timm
import torch
from torch import nn

import visionssm

PICO = visionssm.list_models("test_*")
pytestmark = pytest.mark.slow


@pytest.fixture(params=PICO)
def model(request):
    torch.manual_seed(0)
    return timm.create_model(request.param, num_classes=3).eval()


@pytest.fixture
def images(model):
    return torch.randn(2, 3, 64, 64)


def test_peft(model, images):
    peft = pytest.importorskip("peft")
    expected = model(images)
    linears = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=linears, init_lora_weights=False)).eval()
    output = adapted(images)
    assert not torch.allclose(output, expected)
    output.square().sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    with torch.no_grad():
        torch.testing.assert_close(adapted.merge_and_unload()(images), output, atol=1e-4, rtol=1e-3)


def test_accelerate(model, images):
    accelerate = pytest.importorskip("accelerate")
    expected = model(images)
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), execution_device="cpu")
    torch.testing.assert_close(offloaded(images), expected)


def test_captum(model, images):
    attribution = pytest.importorskip("captum.attr")
    saliency = attribution.IntegratedGradients(model).attribute(images, target=1, n_steps=4)
    assert saliency.shape == images.shape and saliency.isfinite().all()


def test_torch_quantization(model, images):
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    assert (quantised(images) - model(images)).abs().max() < 0.5


def test_torchao(model, images):
    torchao = pytest.importorskip("torchao.quantization")
    quantised = copy.deepcopy(model)
    # torchao itself fails on layers of one input
    wide = lambda layer, _: isinstance(layer, nn.Linear) and layer.in_features > 1  # noqa: E731
    torchao.quantize_(quantised, torchao.Int8WeightOnlyConfig(), filter_fn=wide)
    assert (quantised(images) - model(images)).abs().max() < 0.5


def test_fvcore(model, images):
    fvcore = pytest.importorskip("fvcore.nn")
    assert fvcore.FlopCountAnalysis(model, images[:1]).unsupported_ops_warnings(False).total() > 0


def test_transformers(model, images):
    transformers = pytest.importorskip("transformers")
    name = type(model).__name__
    config = transformers.TimmWrapperConfig(architecture=model.default_cfg["architecture"], num_labels=3)
    wrapped = transformers.TimmWrapperForImageClassification(config).eval()
    assert wrapped(images).logits.shape == (2, 3), name


def test_segmentation_models(model, images):
    smp = pytest.importorskip("segmentation_models_pytorch")
    if model.feature_info[0]["reduction"] != 4 or len(model.feature_info) != 4:
        pytest.skip("its encoders have strides 4 to 32")
    unet = smp.Unet(f"tu-{model.default_cfg['architecture']}", encoder_weights=None, classes=2).eval()
    assert unet(images).shape == (2, 2, 64, 64)
