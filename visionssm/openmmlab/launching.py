"""Training and testing through mmengine's Runner, from a command line."""

import argparse
import os
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from ..errors import UserError
from .channels import fill_channels
from .data import check_data, move_data
from .errors import ConfigError
from .layer_decay import describe_groups
from .requirements import check_installed
from .resuming import histories_allowed
from .weights import load_matching, load_strictly


def make_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that training and testing share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="a config of mmdet or mmseg")
    parser.add_argument("--work-dir", help="folder for logs, checkpoints and pictures (default: work/<config's name>)")
    parser.add_argument("--data-root", metavar="DIR", help="folder of the data, in place of the config's")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="settings that override the config's, as train_dataloader.batch_size=4",
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        help="how the processes were started (default: pytorch under torchrun, else none)",
    )
    return parser


def load_config(args: argparse.Namespace) -> Config:
    """Read a config, apply the command line to it, fill in channels, and adapt it to a machine without GPU.

    Raises:
        UserError: the config does not exist, or what it needs is not installed.
    """
    if not os.path.isfile(args.config):
        raise ConfigError(f"no config at {args.config!r}")
    cfg = Config.fromfile(args.config)
    check_installed(cfg.get("default_scope"))
    if args.data_root:
        move_data(cfg, args.data_root)
    cfg.merge_from_dict(args.cfg_options)
    fill_channels(cfg)
    under_torchrun = "LOCAL_RANK" in os.environ and "TORCHELASTIC_RUN_ID" in os.environ
    cfg.launcher = args.launcher or ("pytorch" if under_torchrun else "none")
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or os.path.join("work", Path(args.config).stem)
    if not torch.cuda.is_available() and cfg.launcher != "none":
        _prepare_cpu_processes(cfg)
    return cfg


def _prepare_cpu_processes(cfg: Config) -> None:
    """Gloo in place of NCCL, no device numbers, and batch norms that do not synchronise (PyTorch's do on GPUs only)."""
    if cfg.launcher != "pytorch":
        raise ConfigError(f"without a GPU, torchrun starts several processes, not the launcher {cfg.launcher!r}")
    # mmengine would select a CUDA device first
    torch.distributed.init_process_group("gloo")
    cfg.model_wrapper_cfg = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
    cfg.sync_bn = None
    _replace_sync_bn(cfg.model)


def _replace_sync_bn(node: Any) -> None:
    if isinstance(node, dict):
        if node.get("type") == "SyncBN":
            node["type"] = "BN"
        for value in node.values():
            _replace_sync_bn(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _replace_sync_bn(value)


class InitialWeightsHook(Hook):
    """Loads `load_from` in mmengine's place, which would accept a file that fits nowhere and run what a pickle says.

    Args:
        path: A checkpoint of a detector or segmenter.
    """

    priority = "VERY_HIGH"

    def __init__(self, path: str):
        self.path = path

    def before_train(self, runner: Runner) -> None:
        left = load_matching(_bare(runner.model), self.path)
        runner.logger.info(f"Loaded {self.path}; {len(left)} tensors are new{': ' if left else ''}{', '.join(left)}")


def latest_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """The newest complete checkpoint of a training: what a killed process left half written is passed over."""
    found = [
        path
        for unit in ("iter", "epoch")
        for path in Path(work_dir).glob(f"{unit}_*.pth")
        if path.stem.removeprefix(f"{unit}_").isdigit() and zipfile.is_zipfile(path)
    ]
    return str(max(found, key=lambda path: int(path.stem.split("_")[1]))) if found else None


def _choose_start(cfg: Config, resume: str | None) -> Hook | None:
    """Let the config resume, or return the hook that loads what it begins with."""
    checkpoint = latest_checkpoint(cfg.work_dir) if resume == "auto" else resume
    if checkpoint is not None:
        if not os.path.isfile(checkpoint):
            raise ConfigError(f"no checkpoint at {checkpoint!r} to resume from")
        cfg.resume, cfg.load_from = True, checkpoint
        cfg.model.backbone.pretrained = False  # the file has the backbone
        return None
    if cfg.get("resume") or not cfg.get("load_from"):
        return None
    path, cfg.load_from = cfg.load_from, None
    cfg.model.backbone.pretrained = False  # the file has the backbone
    return InitialWeightsHook(path)


def _bare(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model)


def build_runner(cfg: Config) -> Runner:
    """The config's runner; its model is built here."""
    return Runner.from_cfg(cfg) if "runner_type" not in cfg else RUNNERS.build(cfg)


def train(argv: list[str] | None = None) -> int:
    """Entry of tools/openmmlab_train.py."""
    parser = make_parser("Train a detector or segmenter of mmdet or mmseg.")
    parser.add_argument("--amp", action="store_true", help="mixed precision; needs a GPU")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate from the config's batch size to the actual one",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="continue from a checkpoint; without FILE from the last one in the work folder, if any",
    )
    parser.add_argument(
        "--show-groups",
        action="store_true",
        help="print the optimizer's groups (layers, learning rates, weight decay) and stop",
    )
    args = parser.parse_args(argv)
    return _run(lambda: _prepare_training(args), _train)


def _train(runner: Runner) -> None:
    with histories_allowed() if runner.cfg.get("resume") else nullcontext():
        runner.train()


def _prepare_training(args: argparse.Namespace) -> Runner | None:
    """What shall train, or None if it was asked for a table alone."""
    cfg = load_config(args)
    if args.amp:
        if not torch.cuda.is_available():
            raise ConfigError("--amp needs a GPU, and there is none")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if args.auto_scale_lr:
        if "auto_scale_lr" not in cfg:
            raise ConfigError("--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config")
        cfg.auto_scale_lr.enable = True
    if args.show_groups:
        print(describe_groups(_optimizer(cfg)))
        return None
    check_data(cfg, ["train"] if cfg.get("val_cfg") is None else ["train", "val"])
    initial = _choose_start(cfg, args.resume)
    runner = build_runner(cfg)
    if initial is not None:
        runner.register_hook(initial)
    return runner


def _optimizer(cfg: Config) -> torch.optim.Optimizer:
    init_default_scope(cfg.default_scope)
    return build_optim_wrapper(MODELS.build(cfg.model), cfg.optim_wrapper).optimizer


def test(argv: list[str] | None = None) -> int:
    """Entry of tools/openmmlab_test.py."""
    parser = make_parser("Evaluate a detector or segmenter of mmdet or mmseg.")
    parser.add_argument("checkpoint", help="file of its training, or a converted one")
    parser.add_argument("--show-dir", help="folder that receives pictures of the predictions")
    args = parser.parse_args(argv)
    return _run(lambda: _prepare_testing(args), lambda runner: runner.test())


def _prepare_testing(args: argparse.Namespace) -> Runner:
    cfg = load_config(args)
    cfg.load_from = None
    cfg.model.backbone.pretrained = False  # the checkpoint has the backbone
    if args.show_dir:
        cfg.default_hooks.visualization.update(draw=True, interval=1)
        folder = os.path.abspath(args.show_dir)
        if cfg.default_scope == "mmdet":
            cfg.default_hooks.visualization.test_out_dir = folder
        else:
            cfg.visualizer.save_dir = folder
    check_data(cfg, ["test"])
    runner = build_runner(cfg)
    load_strictly(_bare(runner.model), args.checkpoint)
    return runner


def _run(prepare: Callable[[], Runner | None], go: Callable[[Runner], object]) -> int:
    """What is wrong before the first iteration is a sentence; what goes wrong later keeps its traceback."""
    try:
        runner = prepare()
    except (UserError, ValueError) as error:
        return _report(error)
    try:
        if runner is not None:
            go(runner)
    except UserError as error:  # from the hooks that compare model, data and checkpoint before the first iteration
        return _report(error)
    return 0


def _report(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
