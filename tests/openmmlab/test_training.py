"""Two iterations of Mask R-CNN and of UPerNet with every family, on scenes of digits."""

import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("mmseg", reason="mmseg is not installed")
pytest.importorskip("mmcv", reason="mmcv is not installed")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'visionssm[demo]'")

import timm  # noqa: E402
import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from tests.families import PICO, at_size, is_plain, mostly_slow  # noqa: E402
from visionssm.commands import openmmlab_test as evaluate  # noqa: E402
from visionssm.commands import openmmlab_train as train  # noqa: E402
from visionssm.digits.scenes import write_scenes  # noqa: E402
from visionssm.models import CheckpointError  # noqa: E402
from visionssm.openmmlab import launching  # noqa: E402
from visionssm.openmmlab.channels import fill_channels
from visionssm.openmmlab.data import move_data  # noqa: E402
from visionssm.openmmlab.resuming import histories_allowed  # noqa: E402
from visionssm.openmmlab.weights import load_matching  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def trains_here(name):
    """All but models that are bound to one size of images."""
    return is_plain(name) or not at_size(name, 64)


DENSE = mostly_slow(filter(trains_here, PICO))
DETECTION = ROOT / "configs/detection/digits/mask_rcnn_test_vmamba_digits.py"
SEGMENTATION = ROOT / "configs/segmentation/digits/upernet_test_vmamba_digits.py"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=4, validation=2)
    return folder


class Watch(Hook):
    """Collects losses, and which of the backbone's trained parameters had gradients."""

    def __init__(self):
        self.losses, self.finite, self.all = [], {}, set()

    def before_train(self, runner):
        for name, parameter in runner.model.backbone.named_parameters():
            if not parameter.requires_grad:
                continue
            self.all.add(name)
            parameter.register_hook(lambda g, name=name: self.finite.__setitem__(name, bool(g.isfinite().all())))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs["loss"]))


def read(path, scenes, work_dir, iterations=2):
    cfg = Config.fromfile(path)
    cfg.model.backbone.pretrained = False
    cfg.work_dir = str(work_dir)
    cfg.train_dataloader.batch_size = 2
    move_data(cfg, str(scenes))
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = iterations
    cfg.default_hooks.checkpoint.update(interval=1000, save_best=None, save_last=False)
    cfg.vis_backends = cfg.visualizer.vis_backends = []
    cfg.default_hooks.visualization.draw = False
    return cfg


def run(cfg, validate):
    if not validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    watch = Watch()
    cfg.experiment_name = f"{Path(cfg.work_dir).name}-{id(watch)}"
    runner = Runner.from_cfg(cfg)
    runner.register_hook(watch)
    runner.train()
    assert len(watch.losses) == cfg.train_cfg.max_iters
    assert all(torch.tensor(watch.losses).isfinite())
    assert watch.all and not watch.all - set(watch.finite), "parameters without a gradient"
    assert all(watch.finite.values())
    return runner


def segmenter(name, scenes, work_dir):
    cfg = read(SEGMENTATION, scenes, work_dir)
    cfg.model.backbone.name = name
    if is_plain(name):
        cfg.model.neck = dict(type="Feature2Pyramid", embed_dim=48, norm_cfg=dict(type="BN"))
        cfg.model.decode_head.in_channels = [48] * 4
    else:
        maps = len(strides_of(name))
        cfg.model.decode_head.in_index = list(range(maps))
        cfg.model.auxiliary_head.in_index = min(2, maps - 1)
        del cfg.model.decode_head["in_channels"], cfg.model.auxiliary_head["in_channels"]
        fill_channels(cfg)
    return cfg


def strides_of(name):
    """Of the maps that a hierarchical backbone gives by default, the finest first."""
    return sorted({level["reduction"] for level in timm.create_model(name, device="meta").feature_info})


def detector(name, scenes, work_dir):
    cfg = read(DETECTION, scenes, work_dir)
    cfg.model.backbone.name = name
    if is_plain(name):
        cfg.model.backbone.out_indices = (3,)
        cfg.model.neck = dict(type="SimpleFPN", in_channels=48, out_channels=48, num_outs=4)
    elif (first := strides_of(name)[0]) > 4:
        finer = {8: 1, 16: 2}[first]
        levels = [4 * 2**i for i in range(finer + len(strides_of(name)))]
        cfg.model.neck = dict(type="FinerFPN", out_channels=48, num_finer=finer)
        cfg.model.rpn_head.anchor_generator.strides = levels
        for extractor in ("bbox_roi_extractor", "mask_roi_extractor"):
            cfg.model.roi_head[extractor].featmap_strides = levels[:4]
        fill_channels(cfg)
    else:
        del cfg.model.neck["in_channels"]
        fill_channels(cfg)
    cfg.model.train_cfg.rcnn.sampler.num = 16
    cfg.model.train_cfg.rpn_proposal.max_per_img = 16
    cfg.model.test_cfg.rpn.max_per_img = 16
    return cfg


@pytest.mark.parametrize("name", DENSE)
def test_upernet_trains(name, scenes, tmp_path):
    runner = run(segmenter(name, scenes, tmp_path), validate=name == "test_vmamba")
    if name == "test_vmamba":
        assert "val/mIoU" in runner.message_hub.log_scalars


@pytest.mark.parametrize("name", DENSE)
def test_mask_rcnn_trains(name, scenes, tmp_path):
    runner = run(detector(name, scenes, tmp_path), validate=name == "test_vmamba")
    if name == "test_vmamba":
        assert "val/coco/bbox_mAP_50" in runner.message_hub.log_scalars


def small_retinanet(model):
    base = Config.fromfile(ROOT / "configs/_base_/models/retinanet.py").model
    base.backbone, base.neck = model.backbone, model.neck
    base.bbox_head.update(num_classes=10, in_channels=48, feat_channels=48, stacked_convs=1)
    base.bbox_head.anchor_generator.strides = [4, 8, 16, 32]
    return base


def small_cascade(model):
    base = Config.fromfile(ROOT / "configs/_base_/models/cascade_mask_rcnn_simple_fpn.py").model
    base.backbone, base.neck, base.rpn_head = model.backbone, model.neck, model.rpn_head
    for extractor in (base.roi_head.bbox_roi_extractor, base.roi_head.mask_roi_extractor):
        extractor.out_channels = 48
    for head in base.roi_head.bbox_head:
        head.update(in_channels=48, conv_out_channels=48, fc_out_channels=64, num_classes=10)
    base.roi_head.mask_head.update(in_channels=48, conv_out_channels=48, num_convs=1, num_classes=10)
    base.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=16)
    for stage in base.train_cfg.rcnn:
        stage.sampler.num = 16
    return base


def small_deformable_detr(model):
    attention = dict(embed_dims=32, num_heads=4)
    feed_forward = dict(embed_dims=32, feedforward_channels=64)
    return dict(
        type="DeformableDETR",
        num_queries=10,
        num_feature_levels=4,
        with_box_refine=True,
        data_preprocessor=model.data_preprocessor,
        backbone=model.backbone,
        neck=dict(type="ChannelMapper", out_channels=32, num_outs=4, norm_cfg=dict(type="GN", num_groups=8)),
        encoder=dict(
            num_layers=1, layer_cfg=dict(self_attn_cfg=dict(attention, batch_first=True), ffn_cfg=feed_forward)
        ),
        decoder=dict(
            num_layers=2,
            return_intermediate=True,
            post_norm_cfg=None,
            layer_cfg=dict(
                self_attn_cfg=dict(attention, batch_first=True),
                cross_attn_cfg=dict(attention, batch_first=True),
                ffn_cfg=feed_forward,
            ),
        ),
        positional_encoding=dict(num_feats=16, normalize=True, offset=-0.5),
        bbox_head=dict(
            type="DeformableDETRHead",
            num_classes=10,
            embed_dims=32,
            sync_cls_avg_factor=True,
            loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
            loss_bbox=dict(type="L1Loss", loss_weight=5.0),
            loss_iou=dict(type="GIoULoss", loss_weight=2.0),
        ),
        train_cfg=dict(
            assigner=dict(
                type="HungarianAssigner",
                match_costs=[
                    dict(type="FocalLossCost", weight=2.0),
                    dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                    dict(type="IoUCost", iou_mode="giou", weight=2.0),
                ],
            )
        ),
        test_cfg=dict(max_per_img=10),
    )


@pytest.mark.parametrize("change", [small_retinanet, small_cascade, small_deformable_detr])
def test_other_detectors_train(change, scenes, tmp_path):
    cfg = detector("test_vmamba", scenes, tmp_path)
    cfg.model.neck.pop("in_channels")
    cfg.model = change(cfg.model)
    launching.fill_channels(cfg)
    cfg.val_evaluator.metric = "bbox"
    run(cfg, validate=True)


@pytest.mark.parametrize(
    "config",
    [pytest.param(DETECTION, id="detection"), pytest.param(SEGMENTATION, id="segmentation", marks=pytest.mark.slow)],
)
def test_loaded_weights_survive_the_initialisation_of_the_whole_model(config, tmp_path):
    classifier = timm.create_model("test_vmamba", num_classes=10)
    torch.save({"arch": "test_vmamba", "state_dict": classifier.state_dict()}, tmp_path / "last.pth.tar")
    cfg = Config.fromfile(config)
    cfg.model.backbone.pretrained = str(tmp_path / "last.pth.tar")
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    weights = {f"model.{k}": v for k, v in classifier.state_dict().items()}
    own = {k: v for k, v in model.backbone.state_dict().items() if k.startswith("model.")}
    assert own and all(torch.equal(v, weights[k]) for k, v in own.items())


def test_wrong_channels_stop_before_the_first_iteration(scenes, tmp_path):
    cfg = segmenter("test_vmamba", scenes, tmp_path)
    cfg.model.auxiliary_head.in_channels = 7
    watch = Watch()
    cfg.experiment_name = "wrong"
    runner = Runner.from_cfg(cfg)
    runner.register_hook(watch)
    with pytest.raises(ValueError, match="write in_channels=48"):
        runner.train()
    assert not watch.losses


def environment():
    return dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))


def command(tool, *arguments, processes=None):
    parts = [sys.executable, "-W", "ignore"]
    if processes:
        parts += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*parts, str(ROOT / "tools" / tool), *map(str, arguments)]


def launch(tool, *arguments, processes=None):
    return subprocess.run(
        command(tool, *arguments, processes=processes), capture_output=True, text=True, env=environment()
    )


def options(scenes, iterations):
    return [
        "--data-dir",
        scenes,
        "--cfg-options",
        "model.backbone.pretrained=False",
        "train_dataloader.batch_size=2",
        f"train_cfg.max_iters={iterations}",
        "train_cfg.val_interval=100000",
        "default_hooks.checkpoint.interval=1",
        "default_hooks.logger.interval=1",
    ]


def test_a_killed_training_continues_from_its_last_checkpoint(scenes, tmp_path):
    script = ("openmmlab_train.py", "--config", SEGMENTATION, "--output", tmp_path, "--resume")
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            command(*script, *options(scenes, 100000)), stdout=output, stderr=output, env=environment()
        )
        while launching.latest_checkpoint(tmp_path) is None and process.poll() is None:
            time.sleep(0.1)
        assert process.poll() is None, (tmp_path / "output").read_text()
        process.kill()
        process.wait()
    # as if it had been killed while it wrote the next one, and before that was noted
    last = Path(launching.latest_checkpoint(tmp_path))
    done = int(last.stem.split("_")[1])
    (tmp_path / f"iter_{done + 1}.pth").write_bytes(last.read_bytes()[:1000])
    (tmp_path / "last_checkpoint").write_text("")
    result = launch(*script, *options(scenes, done + 2))
    assert result.returncode == 0, result.stderr
    assert f"resumed epoch: 0, iter: {done}" in result.stdout + result.stderr
    first = f"[{done + 1}/{done + 2}]".replace("[", r"\[\s*").replace("]", r"\]")
    assert re.search(rf"Iter\(train\) {first}", result.stdout + result.stderr)
    assert launching.latest_checkpoint(tmp_path) == str(tmp_path / f"iter_{done + 2}.pth")


def test_without_a_checkpoint_resuming_starts_anew(tmp_path):
    assert launching.latest_checkpoint(tmp_path) is None
    (tmp_path / "epoch_1.pth").write_bytes(b"half")
    assert launching.latest_checkpoint(tmp_path) is None
    for name in ("epoch_2", "epoch_10", "best_epoch_11"):
        torch.save({}, tmp_path / f"{name}.pth")
    assert launching.latest_checkpoint(tmp_path) == str(tmp_path / "epoch_10.pth")


@pytest.mark.parametrize(
    "config",
    [pytest.param(DETECTION, id="detection"), pytest.param(SEGMENTATION, id="segmentation", marks=pytest.mark.slow)],
)
def test_two_processes_train_and_what_they_saved_is_tested_and_drawn(config, scenes, tmp_path):
    result = launch("openmmlab_train.py", "--config", config, "--output", tmp_path, *options(scenes, 2), processes=2)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "iter_2.pth").is_file()
    result = launch(
        "openmmlab_test.py",
        "--config",
        config,
        "--checkpoint",
        tmp_path / "iter_2.pth",
        "--output",
        tmp_path,
        "--show-dir",
        tmp_path / "pictures",
        "--data-dir",
        scenes,
    )
    assert result.returncode == 0, result.stderr
    assert ("bbox_mAP_50" if config == DETECTION else "mIoU") in result.stdout + result.stderr
    assert list((tmp_path / "pictures").rglob("*.png"))


@pytest.fixture(scope="module")
def checkpoint(scenes, tmp_path_factory):
    """A segmenter's weights as a training writes them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    run(segmenter("test_vmamba", scenes, folder), validate=False).save_checkpoint(str(folder), "iter_2.pth")
    return folder / "iter_2.pth"


class Hostile:
    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


def test_what_a_training_saves_is_read_without_unpickling(checkpoint, tmp_path):
    with histories_allowed():
        saved = torch.load(checkpoint, weights_only=True)
    losses = saved["message_hub"]["log_scalars"]["train/loss"]
    assert len(losses.data[0]) == 2 and losses.mean() > 0
    torch.save({"state": Hostile()}, tmp_path / "hostile.pth")
    with histories_allowed(), pytest.raises(pickle.UnpicklingError, match="no HistoryBuffer.__init__"):
        torch.load(tmp_path / "hostile.pth", weights_only=True)


def test_finetuning_begins_with_what_fits(checkpoint, scenes, tmp_path):
    cfg = segmenter("test_vmamba", scenes, tmp_path)
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = 3
    init_default_scope("mmseg")
    model = MODELS.build(cfg.model)
    new = load_matching(model, checkpoint)
    assert new == [
        f"{head}.conv_seg.{kind}" for head in ("decode_head", "auxiliary_head") for kind in ("weight", "bias")
    ]
    saved = torch.load(checkpoint, weights_only=False)["state_dict"]
    own = model.state_dict()
    assert all(torch.equal(own[k], saved[k]) for k in own if k not in new)
    torch.save({"state_dict": {k: v for k, v in saved.items() if "stages.3" not in k}}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="does not fill the backbone"):
        load_matching(model, tmp_path / "part.pth")


def test_the_launcher_finetunes(checkpoint, scenes, tmp_path, capfd):
    arguments = [
        "--config",
        str(SEGMENTATION),
        "--output",
        str(tmp_path),
        *map(str, options(scenes, 1)),
        "optim_wrapper.optimizer.lr=0.0",
        "default_hooks.visualization.draw=False",
    ]
    # the backbone comes from the file, not from a classifier that is not there
    arguments += [f"load_from={checkpoint}", "model.backbone.pretrained=absent.pth"]
    assert train.main([*arguments, "experiment_name=finetune"]) == 0
    saved = [torch.load(path, weights_only=False)["state_dict"] for path in (checkpoint, tmp_path / "iter_1.pth")]
    weights = [k for k in saved[0] if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.equal(saved[0][k], saved[1][k]) for k in weights), "without a learning rate nothing changes"

    torch.save({"state_dict": {"head.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    arguments[-2] = f"load_from={tmp_path / 'other.pth'}"
    assert train.main([*arguments, "experiment_name=other"]) == 2
    assert "does not fill the backbone" in capfd.readouterr().err


class Fails(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        raise ValueError("in the middle of training")


def test_an_error_in_training_keeps_its_traceback(scenes, tmp_path, monkeypatch, capsys):
    build = launching.build_runner

    def with_a_fault(cfg):
        runner = build(cfg)
        runner.register_hook(Fails())
        return runner

    monkeypatch.setattr(launching, "build_runner", with_a_fault)
    arguments = ["--config", str(SEGMENTATION), "--output", str(tmp_path), *map(str, options(scenes, 1))]
    with pytest.raises(ValueError, match="in the middle of training") as error:
        train.main([*arguments, "experiment_name=fault"])
    assert error.traceback[-1].name == "before_train_iter"
    assert "openmmlab_train:" not in capsys.readouterr().err


def test_the_launcher_prints_groups(capsys):
    arguments = ["--config", str(SEGMENTATION), "--show-groups", "--cfg-options", "model.backbone.pretrained=False"]
    assert train.main(arguments) == 0
    table = capsys.readouterr().out
    assert "weight decay" in table and "0.001" in table


def test_the_launchers_refuse_bad_input_in_one_sentence(checkpoint, scenes, tmp_path, capsys):
    def refused(entry, *arguments):
        assert entry([*map(str, arguments), "--output", str(tmp_path)]) == 2
        return capsys.readouterr().err

    assert "no config at" in refused(train.main, "--config", tmp_path / "absent.py")
    assert "which does not exist" in refused(train.main, "--config", SEGMENTATION, "--data-dir", tmp_path / "absent")
    assert "which does not exist" in refused(evaluate.main, SEGMENTATION, checkpoint, "--data-dir", tmp_path)
    absent = ("--resume", tmp_path / "absent.pth")
    assert "to resume from" in refused(train.main, "--config", SEGMENTATION, "--data-dir", scenes, *absent)
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "other.pth")
    loaders = ["--data-dir", scenes, "--cfg-options", "experiment_name=refused"]
    assert "missing" in refused(evaluate.main, SEGMENTATION, tmp_path / "other.pth", *loaders)
    if not torch.cuda.is_available():
        assert "--amp needs a GPU" in refused(train.main, "--config", SEGMENTATION, "--amp")
