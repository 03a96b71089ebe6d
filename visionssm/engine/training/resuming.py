"""What a run continues from; and what other options change in it: said in a line, done before the next step."""

import argparse
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...checkpoints import read_content, run_state
from ...errors import UserError
from .checkpoints import find_newest
from .run_folder import RunFolder
from .sharded_checkpoints import consolidate, read_run

_logger = logging.getLogger(__name__)

_HYPERPARAMETERS = ("weight_decay", "eps", "betas", "momentum", "nesterov", "lr_scale")


def read_resumed(resume: str, folder: RunFolder, sharded: bool = False) -> tuple[dict | None, Path | None]:
    """Return the checkpoint to continue from and its path, or (None, None) to start anew.

    Of a sharded one a sharded run gets what is no tensor, since every process reads the tensors of its shares; others
    get all of it. `auto` takes the furthest readable checkpoint of the run folder and names the damaged ones it passed
    over.

    Raises:
        UserError: A named checkpoint cannot be read, or all checkpoints of the folder are damaged.
    """
    if not resume:
        return None, None
    if resume != "auto":
        content = _read(Path(resume), sharded)
        if run_state(content) and "step" not in run_state(content):
            raise UserError(f"{resume} is of no training that could continue; begin with it by --pretrained-path")
        return content, Path(resume)
    path, problems = find_newest(folder.path)
    for problem in problems:
        _logger.warning("%s; passed over", problem)
    if path is None:
        if problems:
            raise UserError(f"no checkpoint in {folder.path} is readable; start anew with --overwrite")
        return None, None
    return _read(path, sharded), path


def _read(path: Path, sharded: bool) -> dict[str, Any]:
    if not path.is_dir():
        return read_content(path)
    return read_run(path) if sharded else consolidate(path)


def changed_options(checkpoint: Mapping[str, Any], options: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return "name old -> new" for the options that the run of a checkpoint had otherwise.

    Raises:
        UserError: Its optimizer was another one, whose state is of no use.
    """
    stored = checkpoint.get("args")
    if not isinstance(stored, argparse.Namespace):
        return []
    old = vars(stored)
    if old.get("opt", options["opt"]) != options["opt"]:
        raise UserError(
            f"the checkpoint was trained with --opt {old['opt']}, not {options['opt']}; resume the weights alone with "
            "--no-resume-opt"
        )
    return [
        f"{name} {_shown(old[name])} -> {_shown(options[name])}"
        for name in names
        if name in old and _plain(old[name]) != _plain(options[name])
    ]


def renew(
    optimizer: torch.optim.Optimizer,
    fresh: list[dict[str, Any]],
    *,
    hyperparameters: Iterable[str] = (),
    rate_depends_on_past: bool = False,
    anew: bool = False,
) -> None:
    """Put this run's options above those that came with an optimizer's state.

    Args:
        optimizer: With a checkpoint's state.
        fresh: Its parameter groups before.
        hyperparameters: Further names of values to take from them.
        rate_depends_on_past: The schedule goes on from the rate that it finds, which stays unless the base changed.
        anew: It is another schedule than before.
    """
    for group, own in zip(optimizer.param_groups, fresh, strict=True):
        base = own.get("initial_lr", own["lr"])
        same_base = group.get("initial_lr", group["lr"]) == base
        if not (rate_depends_on_past and same_base and not anew):
            group["lr"] = own["lr"]
        if "initial_lr" in own:
            group["initial_lr"] = base
        for name in (*_HYPERPARAMETERS, *hyperparameters):
            if name in own:
                group[name] = own[name]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
