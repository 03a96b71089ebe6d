"""What a run that continues with other options changes: said in a line, and done before the next step."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...errors import UserError

_HYPERPARAMETERS = ("weight_decay", "eps", "betas", "momentum", "nesterov", "lr_scale")


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
