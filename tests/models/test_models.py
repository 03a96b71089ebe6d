"""What every family owes to timm, over the registry: the pico variant of each family, the sizes of all names."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg, group_parameters
from timm.optim import create_optimizer_v2

import visionssm
from tests.families import mostly_slow
from visionssm._timm_compat import reinit_non_persistent_buffers

DATA = Path(__file__).resolve().parent.parent / "data"
NAMES = visionssm.list_models()
PICO = visionssm.list_models("test_*")
PUBLISHED = {ours: recorded for recorded, ours in json.loads((DATA / "names.json").read_text()).items()}


def make(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def size_of(name):
    return get_pretrained_cfg(name).input_size


def image(name, batch=2, size=None):
    channels, height, width = size_of(name)
    height, width = size or (height, width)
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_every_name_is_ours_alone():
    # a name or a module of timm's that we registered again would replace timm's
    script = (
        "import timm; before = set(timm.list_models()); modules = set(timm.list_modules())\n"
        "import visionssm; from timm.models import model_entrypoint\n"
        "ours = set(visionssm.list_models())\n"
        "print(sorted(before & ours), sorted(modules & {model_entrypoint(n).__module__.split('.')[-1] for n in ours}))"
    )
    result = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == "[] []"


def test_import_is_silent_and_needs_no_device():
    script = "import visionssm, torch, sys; assert not torch.cuda.is_initialized() and 'mmengine' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("name", NAMES)
def test_default_cfg_says_where_it_comes_from(name):
    cfg = get_pretrained_cfg(name)
    assert cfg is not None and cfg.architecture == name
    assert cfg.license and cfg.origin_url and cfg.paper_name and cfg.paper_ids


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_count_is_the_published_one(name):
    model = timm.create_model(name, device="meta")
    recorded = json.loads((DATA / "keys" / f"{PUBLISHED[name]}.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == recorded["params"]


@pytest.mark.parametrize("name", PICO)
class TestPico:
    def test_is_small(self, name):
        assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) < 500_000

    def test_forward(self, name):
        model = make(name).eval()
        x = image(name)
        with torch.no_grad():
            features = model.forward_features(x)
            logits = model(x)
            torch.testing.assert_close(model.forward_head(features), logits)
            assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        assert features.shape[1 if getattr(model, "output_fmt", "") == "NCHW" else -1] == model.num_features
        assert logits.shape == (2, model.num_classes)
        assert torch.isfinite(logits).all()

    @pytest.mark.parametrize("size", [(33, 47), (64, 33), (37, 96)])
    def test_any_size(self, name, size):
        fixed = get_pretrained_cfg(name).fixed_input_size
        model = make(name, **(dict(img_size=size) if fixed else {})).eval()
        with torch.no_grad():
            assert torch.isfinite(model(image(name, 1, size))).all()

    def test_empty_batch(self, name):
        model = make(name)
        for mode in (model.train, model.eval):
            mode()
            x = image(name, 1)[:0].requires_grad_()
            y = model(x)
            y = y[0] if isinstance(y, tuple) else y
            assert y.shape == (0, model.num_classes)
            y.sum().backward()
            assert x.grad.shape == x.shape

    def test_batch_items_are_independent(self, name):
        model = make(name).eval()
        x = image(name, 3)
        with torch.no_grad():
            torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-4)

    def test_intermediates(self, name):
        model = make(name).eval()
        x = image(name)
        with torch.no_grad():
            final, levels = model.forward_intermediates(x)
            torch.testing.assert_close(final, model.forward_features(x))
            only = model.forward_intermediates(x, indices=[0, -1], stop_early=True, intermediates_only=True)
            first = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
        assert len(levels) == len(model.feature_info) >= 3
        for level, info in zip(levels, model.feature_info, strict=True):
            assert level.shape[1] == info["num_chs"]
            assert level.shape[2] == -(-x.shape[2] // info["reduction"])
        torch.testing.assert_close(only, [levels[0], levels[-1]])
        torch.testing.assert_close(first, levels[:1])

    def test_features_only(self, name):
        model = make(name, features_only=True, out_indices=(0, 1, -1)).eval()
        reference = make(name).eval()
        x = image(name)
        with torch.no_grad():
            maps = model(x)
            expected = reference.forward_intermediates(x, indices=[0, 1, -1], intermediates_only=True)
        torch.testing.assert_close(maps, expected)
        assert [m.shape[1] for m in maps] == model.feature_info.channels()
        assert [-(-x.shape[2] // r) for r in model.feature_info.reduction()] == [m.shape[2] for m in maps]

    def test_every_parameter_of_features_is_trained(self, name):
        """As DistributedDataParallel expects."""
        model = make(name, features_only=True)
        sum(m.square().sum() for m in model(image(name))).backward()
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]

    def test_prune(self, name):
        model = make(name).eval()
        x = image(name)
        with torch.no_grad():
            expected = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
            kept = copy.deepcopy(model)
            indices = kept.prune_intermediate_layers([0, 1], prune_norm=True, prune_head=True)
            actual = kept.forward_intermediates(x, indices=indices, intermediates_only=True)
        torch.testing.assert_close(actual, expected)
        assert indices == [0, 1]
        assert sum(p.numel() for p in kept.parameters()) < sum(p.numel() for p in model.parameters())

    def test_reset_classifier(self, name):
        model = make(name).eval()
        x = image(name)
        with torch.no_grad():
            model.reset_classifier(7)
            assert model.num_classes == 7 and model(x).shape == (2, 7)
            model.reset_classifier(0)
            assert model(x).shape == (2, model.head_hidden_size)
            model.reset_classifier(0, "")
            assert model(x).shape == model.forward_features(x).shape
            bare = make(name, num_classes=0, global_pool="").eval()
            assert bare(x).shape == bare.forward_features(x).shape

    def test_reset_classifier_keeps_dtype(self, name):
        model = make(name, dtype=torch.float64)
        model.reset_classifier(5)
        assert {p.dtype for p in model.parameters()} == {torch.float64}

    def test_backward_reaches_every_parameter(self, name):
        model = make(name, num_classes=11).train()
        outputs = model(image(name))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(o.square().mean() for o in outputs).backward()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        without = [n for n, p in trained.items() if p.grad is None]
        assert not without
        assert all(torch.isfinite(p.grad).all() for p in trained.values())

    def test_grad_checkpointing_changes_nothing(self, name):
        x = image(name)
        plain, saving = make(name).eval(), make(name).eval()
        saving.set_grad_checkpointing()
        results = []
        for model in (plain, saving):
            logits = model(x)
            logits.square().mean().backward()
            results.append([logits, *(p.grad for p in model.parameters())])
        torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-4)

    def test_drop_path_and_dropout(self, name):
        model = make(name, drop_path_rate=0.5, drop_rate=0.3).train()
        x = image(name, 4)
        first = model(x)
        second = model(x)
        pair = (first[0], second[0]) if isinstance(first, tuple) else (first, second)
        assert not torch.equal(*pair)

    def test_meta_device(self, name):
        reference = make(name).eval()
        model = timm.create_model(name, device="meta")
        assert {p.device.type for p in model.parameters()} == {"meta"}
        model = model.to_empty(device="cpu")
        for t in [*model.parameters(), *model.buffers()]:  # whatever is not restored must show
            torch.nn.init.constant_(t, float("nan") if t.is_floating_point() else -1) if t.numel() else None
        model.load_state_dict(reference.state_dict())
        reinit_non_persistent_buffers(model)
        with torch.no_grad():
            assert torch.equal(model.eval()(image(name)), reference(image(name)))

    def test_init_weights_on_empty_memory(self, name):
        model = timm.create_model(name, device="meta").to_empty(device="cpu")
        for t in [*model.parameters(), *model.buffers()]:
            torch.nn.init.constant_(t, float("nan") if t.is_floating_point() else -1) if t.numel() else None
        model.init_weights()
        reinit_non_persistent_buffers(model)
        with torch.no_grad():
            assert torch.isfinite(model.eval()(image(name))).all()

    def test_export(self, name):
        model = make(name).eval()
        x = image(name)
        with torch.no_grad():
            program = torch.export.export(model, (x,))
            torch.testing.assert_close(program.module()(x), model(x))

    def test_fx_is_bit_equal(self, name):
        from timm.models._features_fx import create_feature_extractor, get_graph_node_names

        model = make(name).eval()
        x = image(name)
        nodes = get_graph_node_names(model)[1]
        traced = create_feature_extractor(model, {nodes[-1]: "out"})
        with torch.no_grad():
            assert torch.equal(traced(x)["out"], model(x))

    def test_bf16_autocast(self, name):
        model = make(name).eval()
        x = image(name)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            low = model(x).float()
        with torch.no_grad():
            full = model(x)
        assert (low - full).std() < 0.1 * full.std() + 1e-3

    def test_bf16_model(self, name):
        model = make(name, dtype=torch.bfloat16).eval()
        with torch.no_grad():
            logits = model(image(name).bfloat16())
        assert logits.dtype == torch.bfloat16 and torch.isfinite(logits).all()

    def test_unknown_argument_is_refused(self, name):
        with pytest.raises(TypeError, match="drop_pth"):
            timm.create_model(name, drop_pth=0.1)

    def test_torchscript_is_declined_with_a_reason(self, name):
        with pytest.raises(NotImplementedError, match="torch.export"):
            torch.jit.script(make(name))

    def test_layer_decay_groups(self, name):
        model = make(name)
        groups = group_parameters(model, model.group_matcher())
        blocks = {
            n.rsplit("blocks.", 1)[0] + n.split("blocks.", 1)[1].split(".")[0]
            for n, _ in model.named_parameters()
            if "blocks." in n
        }
        assert len(groups) == 1 + len(blocks) + 1
        assert sorted(n for g in groups.values() for n in g) == sorted(n for n, _ in model.named_parameters())
        create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.8)

    def test_no_weight_decay_names_exist(self, name):
        model = make(name)
        assert set(model.no_weight_decay()) <= {n for n, _ in model.named_parameters()}

    def test_local_dir_round_trip(self, name, tmp_path):
        model = make(name, num_classes=6).eval()
        timm.models.save_for_hf(model, tmp_path, safe_serialization="both")
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        x = image(name)
        with torch.no_grad():
            assert torch.equal(again(x), model(x))
        gray = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=1).eval()
        with torch.no_grad():
            assert gray(x[:, :1]).shape == (2, 3)

    def test_own_state_dict_passes_the_filter_unchanged(self, name):
        model = make(name)
        state = model.state_dict()
        out = model.checkpoint_filter_fn(dict(state), model)
        assert list(out) == list(state)
        assert all(torch.equal(out[k], state[k]) for k in state)


@pytest.mark.parametrize("name", mostly_slow(PICO))
def test_compile(name):
    model = make(name).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = image(name)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("name", mostly_slow(PICO))
def test_compile_training_step(name):
    torch._dynamo.reset()
    model = make(name).eval()
    x = image(name)
    expected = model(x)
    expected.square().mean().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    actual = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    actual.square().mean().backward()
    torch.testing.assert_close(actual, expected)
    actual_grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(actual_grads, grads, atol=1e-6, rtol=1e-4)


def test_a_size_for_a_model_of_any_size_is_refused():
    with pytest.raises(TypeError, match="VMamba takes images of any size: leave img_size out"):
        timm.create_model("test_vmamba", img_size=64)
