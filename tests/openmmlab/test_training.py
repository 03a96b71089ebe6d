"""Two iterations of Mask R-CNN and of UPerNet with every family, on scenes of digits."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmseg", reason="mmseg is not installed")
pytest.importorskip("mmcv", reason="mmcv is not installed")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'visionssm[demo]'")

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from visionssm.engine.digit_scenes import write_scenes  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DETECTION = ROOT / "configs/detection/digits/mask_rcnn_test_vmamba_digits.py"
SEGMENTATION = ROOT / "configs/segmentation/digits/upernet_test_vmamba_digits.py"
HIERARCHICAL = ("test_vmamba", "test_localvmamba", "test_groupmamba")
PLAIN = ("test_vim", "test_localvim", "test_plainmamba")
compiled = pytest.mark.skipif(
    "not __import__('importlib').util.find_spec('mmcv._ext')", reason="mmcv's operators are not compiled")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=4, validation=2)
    return folder


class Watch(Hook):
    """Collects losses, and which parameters of the backbone had gradients."""

    def __init__(self):
        self.losses, self.finite, self.all = [], {}, set()

    def before_train(self, runner):
        for name, parameter in runner.model.backbone.named_parameters():
            self.all.add(name)
            parameter.register_hook(lambda g, name=name: self.finite.__setitem__(name, bool(g.isfinite().all())))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs["loss"]))


def read(path, scenes, work_dir, iterations=2):
    cfg = Config.fromfile(path)
    cfg.model.backbone.pretrained = False
    cfg.work_dir = str(work_dir)
    cfg.train_dataloader.batch_size = 2
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(scenes)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if evaluator.type == "CocoMetric":
            evaluator.ann_file = str(scenes / "instances_validation.json")
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
    if name in PLAIN:
        cfg.model.neck = dict(type="Feature2Pyramid", embed_dim=48, norm_cfg=dict(type="BN"))
        cfg.model.decode_head.in_channels = [48] * 4
    return cfg


def detector(name, scenes, work_dir):
    cfg = read(DETECTION, scenes, work_dir)
    cfg.model.backbone.name = name
    if name in PLAIN:
        cfg.model.backbone.out_indices = (3,)
        cfg.model.neck = dict(type="SimpleFPN", in_channels=48, out_channels=48, num_outs=4)
    cfg.model.train_cfg.rcnn.sampler.num = 16
    cfg.model.train_cfg.rpn_proposal.max_per_img = 16
    cfg.model.test_cfg.rpn.max_per_img = 16
    return cfg


@pytest.mark.parametrize("name", HIERARCHICAL + PLAIN)
def test_upernet_trains(name, scenes, tmp_path):
    runner = run(segmenter(name, scenes, tmp_path), validate=name == "test_vmamba")
    if name == "test_vmamba":
        assert "val/mIoU" in runner.message_hub.log_scalars


@compiled
@pytest.mark.parametrize("name", HIERARCHICAL + PLAIN)
def test_mask_rcnn_trains(name, scenes, tmp_path):
    runner = run(detector(name, scenes, tmp_path), validate=name == "test_vmamba")
    if name == "test_vmamba":
        assert "val/coco/bbox_mAP_50" in runner.message_hub.log_scalars


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


def launch(tool, *arguments, processes=None, **kwargs):
    command = [sys.executable, "-W", "ignore"]
    if processes:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    return subprocess.run([*command, str(ROOT / "tools" / tool), *map(str, arguments)], capture_output=True, text=True,
                          env=environment, **kwargs)


def options(scenes, iterations):
    roots = [f"{split}_dataloader.dataset.data_root={scenes}" for split in ("train", "val", "test")]
    return ["--cfg-options", *roots, "model.backbone.pretrained=False",
            "train_dataloader.batch_size=2", f"train_cfg.max_iters={iterations}", "train_cfg.val_interval=100",
            "default_hooks.checkpoint.interval=1", "default_hooks.checkpoint.max_keep_ckpts=2",
            "default_hooks.logger.interval=1"]


@pytest.mark.slow
def test_launcher_resumes_tests_and_draws(scenes, tmp_path):
    train = ("openmmlab_train.py", SEGMENTATION, "--work-dir", tmp_path, "--resume")
    first = launch(*train, *options(scenes, 2))
    assert first.returncode == 0, first.stderr
    again = launch(*train, *options(scenes, 3))
    assert again.returncode == 0, again.stderr
    assert "resumed epoch: 0, iter: 2" in again.stdout + again.stderr
    result = launch("openmmlab_test.py", SEGMENTATION, tmp_path / "iter_3.pth", "--work-dir", tmp_path,
                    "--show-dir", tmp_path / "pictures", *options(scenes, 3))
    assert result.returncode == 0, result.stderr
    assert "mIoU" in result.stdout + result.stderr
    assert list((tmp_path / "pictures").rglob("*.png"))


@pytest.mark.slow
def test_two_processes_train(scenes, tmp_path):
    result = launch("openmmlab_train.py", SEGMENTATION, "--work-dir", tmp_path, *options(scenes, 2), processes=2)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "iter_2.pth").is_file()


@pytest.mark.slow
def test_launcher_prints_groups_and_refuses_bad_input(tmp_path):
    table = launch("openmmlab_train.py", SEGMENTATION, "--show-groups", "--cfg-options",
                   "model.backbone.pretrained=False")
    assert table.returncode == 0, table.stderr
    assert "weight decay" in table.stdout and "0.001" in table.stdout
    missing = launch("openmmlab_train.py", tmp_path / "absent.py")
    assert missing.returncode == 2 and "no config at" in missing.stderr
    if not torch.cuda.is_available():
        amp = launch("openmmlab_train.py", SEGMENTATION, "--amp")
        assert amp.returncode == 2 and "--amp needs a GPU" in amp.stderr
