"""Models without some of their parts: which can go, and how (Mamba-Shedder, arXiv:2501.17088)."""

import logging
import re
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from ..errors import nearest
from ..layers import RemovedBlock, RemovedBranch, RemovedScan, ResidualBlock, SelectiveSSM

KINDS = ("block", "branch", "ssm")
_BLOCK = re.compile(r"(^|.*\.)blocks\.\d+")
_BRANCHES = {"mixer": "1", "mlp": "2"}  # attribute -> number of its norm, scale and drop path

_logger = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nn.Module)


def removable(model: nn.Module, kind: str | None = None) -> list[str]:
    """Paths of the parts that can be removed from a model, in its order.

    Args:
        model: A model of this package.
        kind: "block", whose stream passes unchanged; "branch", mixer or MLP of a block with both, with the norm before
            it; "ssm", the scan of a mixer, whose input takes the place of its output while projections, convolution and
            gate stay. None for all. A block that changes the map's size is none, nor is a scan of another kind than
            `SelectiveSSM`.

    Raises:
        ValueError: an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    found = ((path, _kind_of(model, path, module)) for path, module in model.named_modules())
    return [path for path, part in found if part is not None and kind in (None, part)]


def _kind_of(model: nn.Module, path: str, module: nn.Module) -> str | None:
    if isinstance(module, RemovedBlock | RemovedBranch | RemovedScan):
        return None
    if _BLOCK.fullmatch(path):
        return "block" if getattr(module, "downsample", None) is None else None
    if type(module) is SelectiveSSM:  # a subclass reads its input in its own way
        return "ssm"
    parent, _, name = path.rpartition(".")
    if name in _BRANCHES and isinstance(block := model.get_submodule(parent), ResidualBlock) and block.mlp is not None:
        return "branch"
    return None


def stand_ins(model: nn.Module, path: str) -> dict[str, nn.Module]:
    """The modules that take the place of a removable part, by their paths."""
    module = model.get_submodule(path)
    kind = _kind_of(model, path, module)
    if kind == "block":
        return {path: RemovedBlock()}
    if kind == "ssm":
        return {path: RemovedScan(module.routes, module.shared_input)}
    parent, _, name = path.rpartition(".")
    around = {f"{parent}.{part}{_BRANCHES[name]}": nn.Identity() for part in ("norm", "scale", "drop_path")}
    return {path: RemovedBranch(), **around}


def check_removed(model: nn.Module, paths: Sequence[str]) -> None:
    """Check that parts can be removed from a model together, beside those that are already.

    Raises:
        TypeError: one text instead of a sequence.
        ValueError: a path is none of a removable part, is there twice or together with a part of it, or nothing would
            be left of a stage's blocks.
    """
    if isinstance(paths, str):
        raise TypeError(f"removed must be a sequence of paths, got the text {paths!r}")
    known, gone = removable(model), tuple(getattr(model, "removed", ()))
    every = [*gone, *paths]
    for i, path in enumerate(every):
        if path in every[:i]:
            raise ValueError(f"{path!r} is removed twice")
        if i >= len(gone) and path not in known:
            raise ValueError(
                f"{type(model).__name__} has no part {path!r} that can be removed{nearest(path, known)}; "
                "visionssm.models.removable(model) lists them"
            )
        for other in every:
            if path.startswith(f"{other}."):
                raise ValueError(f"{path!r} is a part of {other!r}, which is removed as a whole")
    branches = {path.rpartition(".")[0] for path in every if path.rpartition(".")[2] in _BRANCHES}
    for block in branches:
        if all(f"{block}.{name}" in every for name in _BRANCHES):
            raise ValueError(f"both branches of {block!r} are removed; remove the block")
    for parent in {path.rpartition(".")[0] for path in every if _BLOCK.fullmatch(path)}:
        depth = len(model.get_submodule(parent))
        if sum(_BLOCK.fullmatch(path) is not None and path.rpartition(".")[0] == parent for path in every) >= depth:
            raise ValueError(f"all {depth} blocks of {parent!r} are removed; at least one must stay")


def remove(model: Module, paths: Sequence[str]) -> Module:
    """Remove parts from a model, in place; names of what stays do not change.

    `model.removed` holds all paths, and the model's `checkpoint_filter_fn` leaves out what a full checkpoint has for
    them. A pruned model is built anew by `timm.create_model(name, removed=model.removed)`.

    Args:
        model: A model of this package.
        paths: Parts as `removable` lists them.

    Returns:
        The model.

    Raises:
        TypeError: one text instead of a sequence.
        ValueError: these parts cannot be removed together, see `check_removed`.
    """
    check_removed(model, paths)
    if paths:
        for path in paths:
            for name, module in stand_ins(model, path).items():
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.train(model.training))
        model.removed = (*getattr(model, "removed", ()), *paths)
    return model


def without_removed(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict under the model's names without what belongs to removed parts; the model's own names stay."""
    prefixes = []
    for path in getattr(model, "removed", ()):
        parent, _, name = path.rpartition(".")
        numbers = _BRANCHES.get(name)
        prefixes += [f"{path}.", *((f"{parent}.norm{numbers}.", f"{parent}.scale{numbers}.") if numbers else ())]
    kept = {name: value for name, value in state_dict.items() if not name.startswith(tuple(prefixes))}
    if len(kept) < len(state_dict):
        _logger.info("%d entries of the checkpoint belong to removed parts", len(state_dict) - len(kept))
    return kept
