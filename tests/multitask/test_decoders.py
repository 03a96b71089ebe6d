"""Multi-task networks: over any backbone, the authors' files completely, losses and metrics, wrong input named."""

import json
from pathlib import Path

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.errors import CheckpointError
from visionssm.multitask import MTMambaDecoder, MultiTaskLoss, create_model, list_models

KEYS = Path(__file__).resolve().parents[1] / "data" / "keys"


@pytest.mark.parametrize("variant", sorted(path.stem for path in KEYS.glob("mtmamba_*.json")))
def test_published_files_fit_exactly(variant):
    record = json.loads((KEYS / f"{variant}.json").read_text())
    config = record["config"]
    with torch.device("meta"):
        model = MTMambaDecoder(config["channels"], config["tasks"], 2 if "plus" in config["kind"] else 1)
    assert sum(p.numel() for p in model.parameters()) == record["params"]
    state = {n: torch.empty(shape, device="meta") for n, shape in record["keys"]}
    nested = {"model": {f"module.{n}": v for n, v in state.items()} | {"module.backbone.norm3.weight": torch.ones(1)}}
    assert model.checkpoint_filter_fn(nested, model).keys() == model.state_dict().keys()
    with pytest.raises(CheckpointError, match="missing from the file"):
        model.checkpoint_filter_fn(dict(list(state.items())[:-1]), model)


@pytest.mark.parametrize("version", [1, 2])
def test_decodes_the_maps_of_a_backbone(version):
    backbone = timm.create_model("test_vmamba", features_only=True, dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))
    tasks = {"edge": 1, "semseg": 4}
    decoder = MTMambaDecoder(backbone.feature_info.channels(), tasks, version)
    x = torch.randn(2, 3, 64, 96)
    y = decoder(backbone(x))
    assert {task: tuple(value.shape) for task, value in y.items()} == {
        "semseg": (2, 4, 64, 96),
        "edge": (2, 1, 64, 96),
    }
    assert list(y) == ["semseg", "edge"]
    sum(value.square().mean() for value in y.values()).backward()
    assert all(p.grad is not None for p in decoder.parameters())


@pytest.mark.slow
def test_a_network_is_an_onnx_file_with_an_output_for_each_task(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    from visionssm.analysis.exporting import export_model

    small = dict(backbone_args=dict(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), out_indices=(0, 1)), d_state=1)
    model = create_model("mtmamba", tasks={"edge": 1, "semseg": 4}, backbone="test_vmamba", **small).eval()
    path = tmp_path / "tasks.onnx"
    assert export_model(model, torch.randn(2, 3, 16, 24), path).difference < 1e-4
    outputs = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_outputs()
    assert [(y.name, y.shape[1:]) for y in outputs] == [("semseg", [4, 16, 24]), ("edge", [1, 16, 24])]


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="each twice the one before"):
        MTMambaDecoder((8, 16, 24), {"depth": 1})
    with pytest.raises(ValueError, match="version must be 1"):
        MTMambaDecoder((8, 16), {"depth": 1}, version=3)
    with pytest.raises(ValueError, match="tasks must name"):
        MTMambaDecoder((8, 16), {})
    decoder = MTMambaDecoder((8, 16), {"depth": 1})
    with pytest.raises(ValueError, match="maps of"):
        decoder([torch.randn(1, 8, 8, 8)])
    with pytest.raises(ValueError, match="must halve"):
        decoder([torch.randn(1, 8, 7, 8), torch.randn(1, 16, 3, 4)])


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize(
    "backbone, args",
    [
        ("test_vmamba", dict(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))),
        ("test_convnext", {}),  # widths that do not double
        ("swin_tiny_patch4_window7_224", dict(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), img_size=64)),
    ],
)
def test_whole_networks_over_any_backbone(name, backbone, args, tmp_path):
    torch.manual_seed(0)
    tasks = {"semseg": 3, "depth": 1, "normals": 3, "edge": 1}
    arguments = dict(tasks=tasks, backbone=backbone, backbone_args=args, d_state=2)
    model = create_model(name, **arguments)
    side = (64, 64) if "swin" in backbone else (41, 70)
    outputs = model(torch.randn(2, 3, *side))
    assert {task: tuple(y.shape) for task, y in outputs.items()} == {t: (2, c, *side) for t, c in tasks.items()}
    losses = MultiTaskLoss(tasks)(outputs, targets_of(side))
    losses["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.decoder.parameters())
    assert all(p.grad is not None for p in model.projections.parameters())
    if backbone == "test_vmamba":
        torch.save(model.state_dict(), tmp_path / "own.pth")
        again = create_model(name, checkpoint=tmp_path / "own.pth", **arguments)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def targets_of(side):
    targets = {
        "semseg": torch.randint(0, 3, (2, *side)),
        "depth": torch.rand(2, 1, *side) + 0.5,
        "normals": torch.randn(2, 3, *side),
        "edge": torch.randint(0, 2, (2, 1, *side)),
    }
    targets["semseg"][:, 0] = 255
    targets["depth"][:, :, 0] = 0
    targets["normals"][:, :, 0] = 0
    targets["edge"][:, :, 0] = 255
    return targets


def test_losses_leave_out_what_is_not_known():
    targets = targets_of((6, 5))
    torch.manual_seed(0)
    outputs = {task: torch.randn(2, c, 6, 5) for task, c in {"semseg": 3, "depth": 1, "normals": 3, "edge": 1}.items()}
    loss = MultiTaskLoss(outputs, weights=dict(depth=2.0), combine="sum")
    found = loss(outputs, targets)
    for y in outputs.values():
        y[:, :, 0] += 100
    again = loss(outputs, targets)
    for task, value in found.items():
        torch.testing.assert_close(again[task], value)
    inside = slice(1, None)
    torch.testing.assert_close(
        found["semseg"],
        torch.nn.functional.cross_entropy(outputs["semseg"][:, :, inside], targets["semseg"][:, inside]),
    )
    torch.testing.assert_close(found["depth"], (outputs["depth"] - targets["depth"])[:, :, inside].abs().mean())
    parts = {task: value for task, value in found.items() if task != "total"}
    torch.testing.assert_close(found["total"], sum(parts.values()) + parts["depth"])
    logs = MultiTaskLoss(outputs)(outputs, targets)["total"]
    torch.testing.assert_close(logs, sum(value.log() for value in parts.values()))
    nothing = {task: torch.full_like(t, 255) if not t.is_floating_point() else t * 0 for task, t in targets.items()}
    assert all(value == 0 for task, value in loss(outputs, nothing).items())


def test_metrics_are_those_of_their_definitions():
    metrics = pytest.importorskip("visionssm.multitask.metrics", reason="torchmetrics is not installed")
    tasks = {"semseg": 2, "depth": 1, "normals": 3, "sal": 2, "edge": 1}
    truth = torch.tensor([[[0, 1], [1, 255]]])
    depth = torch.tensor([[[[1.0, 2.0], [0.0, 4.0]]]])
    up = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    targets = {"semseg": truth, "depth": depth, "normals": up, "sal": truth, "edge": truth[:, None]}
    tilted = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    logits = torch.tensor([[[[3.0, -3.0], [3.0, 0.0]]]])  # of class 0: the second 1 is missed
    both = torch.cat([logits, -logits], 1)
    outputs = {"semseg": both, "depth": depth + 1, "normals": tilted, "sal": both, "edge": -logits}
    measured = metrics.MultiTaskMetrics(tasks)
    measured.update(outputs, targets)
    found = measured.compute()
    assert found["semseg_miou"] == pytest.approx(50)  # 1/2 for both classes
    assert found["depth_rmse"] == pytest.approx(1)
    assert found["normals_merr"] == pytest.approx(45, abs=1e-3)
    assert found["edge_odsf"] == pytest.approx(80)  # all taken: precision 2/3, recall 1; one taken: 1, 1/2
    assert found["sal_maxf"] == pytest.approx(100 * 1.3 * 0.5 / 0.8)
    measured.reset()
    measured.update({**outputs, "depth": depth}, targets)
    assert measured.compute()["depth_rmse"] == 0
    better = {**found, "depth_rmse": 0.5}
    assert metrics.gain(better, found) == pytest.approx(10)
    with pytest.raises(ValueError, match="did you mean 'semseg'"):
        metrics.MultiTaskMetrics({"semsg": 2})


def test_wrong_arguments_of_whole_networks_are_named(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'mtmamba"):
        create_model("mtmambo", tasks={"depth": 1})
    with pytest.raises(TypeError, match="did you mean 'backbone_args'"):
        create_model("mtmamba", tasks={"depth": 1}, backbone_arg={})
    with pytest.raises(ValueError, match="halve from one to the next"):
        create_model("mtmamba", tasks={"depth": 1}, backbone="test_vit")
    with pytest.raises(ValueError, match="did you mean 'depth'"):
        MultiTaskLoss(["dept"])
    with pytest.raises(ValueError, match="no target for depth"):
        MultiTaskLoss(["depth"])({"depth": torch.zeros(1, 1, 2, 2)}, {})
    model = create_model("mtmamba", tasks={"depth": 1}, backbone="test_vmamba", d_state=2)
    with pytest.raises(ValueError, match="set in_chans"):
        model(torch.randn(1, 4, 32, 32))
    torch.save({"model": {"module.expand_layers.depth_0.norm.weight": torch.ones(2)}}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=r"model\.decoder"):
        create_model("mtmamba", tasks={"depth": 1}, checkpoint=tmp_path / "theirs.pth", backbone="test_vmamba")
