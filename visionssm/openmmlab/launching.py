"""Training and testing through mmengine's Runner."""

import argparse
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Launch:
    """What training and testing share.

    Args:
        config: File of a config of mmdet or mmseg.
        work_dir: Folder for logs, checkpoints and pictures; the config's, or `work/<its name>`, when not given.
        data_root: Folder of the data, in place of the config's.
        settings: What overrides the config's, as `read_settings` returns it.
        launcher: How the processes were started: none, pytorch, slurm or mpi; pytorch under torchrun, else none, when
            not given.
    """

    config: str
    work_dir: str | None = None
    data_root: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    launcher: str | None = None


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return `key=value` texts as a mapping, by mmengine's rules: numbers, truth values, lists, dotted keys."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("settings", nargs="*", action=DictAction, default={})
    return parser.parse_args(["--", *words]).settings if words else {}


def load_config(launch: Launch) -> Config:
    """Read a config, apply what overrides it, fill in channels, and adapt it to a machine without GPU.

    Raises:
        UserError: the config does not exist, or what it needs is not installed.
    """
    if not os.path.isfile(launch.config):
        raise ConfigError(f"no config at {launch.config!r}")
    cfg = Config.fromfile(launch.config)
    check_installed(cfg.get("default_scope"))
    if launch.data_root:
        move_data(cfg, launch.data_root)
    cfg.merge_from_dict(launch.settings)
    fill_channels(cfg)
    under_torchrun = "LOCAL_RANK" in os.environ and "TORCHELASTIC_RUN_ID" in os.environ
    cfg.launcher = launch.launcher or ("pytorch" if under_torchrun else "none")
    cfg.work_dir = launch.work_dir or cfg.get("work_dir") or os.path.join("work", Path(launch.config).stem)
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


def train(launch: Launch, *, amp: bool = False, auto_scale_lr: bool = False, resume: str | None = None) -> None:
    """Train a detector or segmenter.

    Args:
        launch: Config, folders and processes.
        amp: Mixed precision, which needs a GPU.
        auto_scale_lr: Scale the learning rate from the config's batch size to the actual one.
        resume: Checkpoint to continue from, or "auto" for the last one in the work folder, if any.

    Raises:
        UserError: What is wrong before the first iteration, and what the comparisons of model, data and checkpoint
            find; an error later is as it was.
    """
    with _as_sentences():
        cfg = load_config(launch)
        if amp:
            if not torch.cuda.is_available():
                raise ConfigError("--amp needs a GPU, and there is none")
            cfg.optim_wrapper.type = "AmpOptimWrapper"
            cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
        if auto_scale_lr:
            if "auto_scale_lr" not in cfg:
                raise ConfigError("--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config")
            cfg.auto_scale_lr.enable = True
        check_data(cfg, ["train"] if cfg.get("val_cfg") is None else ["train", "val"])
        initial = _choose_start(cfg, resume)
        runner = build_runner(cfg)
        if initial is not None:
            runner.register_hook(initial)
    with histories_allowed() if runner.cfg.get("resume") else nullcontext():
        runner.train()


def groups(launch: Launch) -> str:
    """Return a table of the optimizer's groups: layers, learning rates, weight decay.

    Raises:
        UserError: As for `train`.
    """
    with _as_sentences():
        cfg = load_config(launch)
        init_default_scope(cfg.default_scope)
        return describe_groups(build_optim_wrapper(MODELS.build(cfg.model), cfg.optim_wrapper).optimizer)


def test(launch: Launch, checkpoint: str, *, show_dir: str | None = None) -> None:
    """Evaluate a detector or segmenter.

    Args:
        launch: Config, folders and processes.
        checkpoint: File of its training, or a converted one; it must fill the model exactly.
        show_dir: Folder that receives pictures of the predictions.

    Raises:
        UserError: As for `train`.
    """
    with _as_sentences():
        cfg = load_config(launch)
        cfg.load_from = None
        cfg.model.backbone.pretrained = False  # the checkpoint has the backbone
        if show_dir:
            cfg.default_hooks.visualization.update(draw=True, interval=1)
            folder = os.path.abspath(show_dir)
            if cfg.default_scope == "mmdet":
                cfg.default_hooks.visualization.test_out_dir = folder
            else:
                cfg.visualizer.save_dir = folder
        check_data(cfg, ["test"])
        runner = build_runner(cfg)
        load_strictly(_bare(runner.model), checkpoint)
    runner.test()


@contextmanager
def _as_sentences() -> Iterator[None]:
    """What mmengine, mmdet and mmseg refuse while they build is the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
