"""Libraries that take any timm model, with every pico model: a few lines each, as their users write them.

`make ecosystem` installs them, runs these and writes the table in reports/ecosystem.md.
"""

import copy
import io

import pytest
import timm
import torch
from torch import nn

import visionssm
from visionssm import segmentation

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


def test_grad_cam(model, images):
    cam = pytest.importorskip("pytorch_grad_cam")
    if hasattr(model, "blocks"):  # plain: the last block whose patches reach a class token
        layers = [model.blocks[-2]]
        to_map = lambda x: model.split_tokens(x)[0].mT.unflatten(2, (int(x.shape[1] ** 0.5), -1))  # noqa: E731
    else:
        layers = [model.get_submodule(model.feature_info[-2]["module"])]
        to_map = None if model.output_fmt == "NCHW" else lambda x: x.permute(0, 3, 1, 2)
    target = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget(1)
    with cam.LayerCAM(model, layers, reshape_transform=to_map) as method:
        maps = method(images, [target] * 2)
    assert maps.shape == (2, 64, 64) and (maps.std(axis=(1, 2)) > 0).all()


def test_lightning(model, images, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-2)

    data = torch.utils.data.TensorDataset(images, torch.tensor([0, 2]))
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = lightning.Trainer(max_steps=2, accelerator="cpu", default_root_dir=tmp_path, log_every_n_steps=1, **quiet)
    trainer.fit(Classifier().train(), torch.utils.data.DataLoader(data, batch_size=2))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # biases of zero before a batch norm, or behind a branch that begins at zero, stay there
    assert sum(torch.equal(p, before[name]) for name, p in trained.items()) < 0.1 * len(trained)


def test_timm_wrapper(model, images):
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture=model.default_cfg["architecture"], num_labels=3)
    wrapped = transformers.TimmWrapperForImageClassification(config).eval()
    assert wrapped(images).logits.shape == (2, 3)


def test_timm_backbone(model, images):
    transformers = pytest.importorskip("transformers")
    levels = len(model.feature_info)
    config = transformers.TimmBackboneConfig(
        backbone=model.default_cfg["architecture"], use_pretrained_backbone=False, out_indices=[levels - 2, levels - 1]
    )
    backbone = transformers.TimmBackbone(config).eval()
    maps = backbone(images).feature_maps
    assert [m.shape[1] for m in maps] == list(backbone.channels) and all(m.ndim == 4 for m in maps)


def test_trainer(model, images, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture=model.default_cfg["architecture"], num_labels=3)
    wrapped = transformers.TimmWrapperForImageClassification(config)
    before = {k: p.detach().clone() for k, p in wrapped.named_parameters() if p.requires_grad}
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=2, use_cpu=True, learning_rate=1e-2, save_strategy="no", report_to=[], disable_tqdm=True
    )
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, (0, 2), strict=True)]
    result = transformers.Trainer(wrapped, arguments, train_dataset=data).train()
    assert result.global_step == 2 and result.training_loss > 0
    # no decay here: what has hardly a gradient at the start stays as it is
    assert sum(torch.equal(wrapped.get_parameter(k), p) for k, p in before.items()) < 0.1 * len(before)


def test_onnxruntime(model, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    torch.onnx.export(model, (images,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(images), atol=1e-4, rtol=1e-3)


def test_torchvision_extraction(model, images):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    names = extraction.get_graph_node_names(model)[1]
    extractor = extraction.create_feature_extractor(model, {names[len(names) // 2]: "inner", names[-1]: "logits"})
    torch.testing.assert_close(extractor(images)["logits"], model(images))


def test_segmentation_models(model, images):
    smp = pytest.importorskip("segmentation_models_pytorch")
    if model.feature_info[0]["reduction"] != 4 or len(model.feature_info) != 4:
        pytest.skip("its encoders have strides 4 to 32")
    unet = smp.Unet(f"tu-{model.default_cfg['architecture']}", encoder_weights=None, classes=2).eval()
    assert unet(images).shape == (2, 2, 64, 64)


@pytest.mark.parametrize("name", ["test_vm_unet", "test_ultralight_vm_unet", "test_umamba_bot_3d", "test_segmamba"])
def test_monai_slides_a_window(name):
    inferers = pytest.importorskip("monai.inferers")
    torch.manual_seed(0)
    network = segmentation.create_model(name).eval()
    side = (40, 36, 33) if network.spatial_dims == 3 else (61, 79)
    images = torch.randn(1, network.in_chans, *side)
    with torch.no_grad():
        logits = inferers.sliding_window_inference(images, (32,) * network.spatial_dims, 2, network)
        whole = inferers.sliding_window_inference(images, side, 1, network)
        torch.testing.assert_close(whole, network(images))
    assert logits.shape == (1, network.num_classes, *side) and logits.isfinite().all()


@pytest.mark.parametrize("name", ["test_vm_unet", "test_umamba_bot_3d"])
def test_monai_trains_a_plain_module(name):
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    network = segmentation.create_model(name, num_classes=3)
    side = (16,) * network.spatial_dims if network.spatial_dims == 3 else (32, 32)
    images, labels = torch.randn(2, network.in_chans, *side), torch.randint(0, 3, (2, 1, *side))
    criterion = losses.DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    seen = []
    for _ in range(5):
        loss = criterion(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < seen[0]
