"""Models without some of their parts: which can go, and how (Mamba-Shedder, arXiv:2501.17088)."""

import copy
import logging
import re
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from ..errors import nearest
from ..layers import RemovedBlock, RemovedBranch, RemovedScan, ResidualBlock, SelectiveSSM

KINDS = ("block", "branch", "ssm", "route")
_BLOCK = re.compile(r"(^|.*\.)blocks\.\d+")
_ROUTE = re.compile(r"(?P<ssm>(?P<mixer>.+)\.ssm)\.routes\.(?P<route>\d+)")
_BRANCHES = {"mixer": "1", "mlp": "2"}  # attribute -> number of its norm, scale and drop path

_logger = logging.getLogger(__name__)
Module = TypeVar("Module", bound=nn.Module)


def removable(model: nn.Module, kind: str | None = None) -> list[str]:
    """Paths of the parts that can be removed from a model, in its order.

    Args:
        model: A model of this package.
        kind: "block", whose stream passes unchanged; "branch", mixer or MLP of a block with both, with the norm before
            it; "ssm", the scan of a mixer, whose input takes the place of its output while projections, convolution and
            gate stay; "route", one route of such a scan in a mixer that adds its routes, with its parameters. None for
            all. A block that changes the map's size is none, nor is a scan of another kind than `SelectiveSSM`.

    Raises:
        ValueError: an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    found: list[tuple[str, str | None]] = []
    for path, module in model.named_modules():
        found.append((path, _kind_of(model, path, module)))
        if found[-1][1] == "ssm" and getattr(model.get_submodule(path.removesuffix(".ssm")), "sums_routes", False):
            routes = module.kept or range(module.routes)
            found += [(f"{path}.routes.{i}", "route") for i in routes if module.table_rows > 1]
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
    if route := _ROUTE.fullmatch(path):
        return {route["mixer"]: _without_route(model.get_submodule(route["mixer"]), int(route["route"]))}
    module = model.get_submodule(path)
    kind = _kind_of(model, path, module)
    if kind == "block":
        return {path: RemovedBlock()}
    if kind == "ssm":
        return {path: RemovedScan(module.routes, module.shared_input)}
    parent, _, name = path.rpartition(".")
    around = {f"{parent}.{part}{_BRANCHES[name]}": nn.Identity() for part in ("norm", "scale", "drop_path")}
    return {path: RemovedBranch(), **around}


def _without_route(mixer: nn.Module, route: int) -> nn.Module:
    """A mixer like another, sharing all but what a route has of its own."""
    mixer, ssm = _twin(mixer), _twin(mixer.get_submodule("ssm"))
    kept = ssm.kept or tuple(range(ssm.routes))
    rows = [row for row, number in enumerate(kept) if number != route]
    for module in (mixer, ssm):
        for name in module.route_parameters:
            whole = getattr(module, name)
            setattr(module, name, nn.Parameter(whole.detach()[rows], requires_grad=whole.requires_grad))
    ssm.routes, ssm.kept = len(rows), tuple(number for number in kept if number != route)
    mixer.ssm = ssm
    return mixer


def _twin(module: Module) -> Module:
    """A module that shares parameters and children with another until it is given its own."""
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(module.__dict__[name])
    return twin


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
    for path in every:
        if path.removeprefix("blocks.") in map(str, getattr(model, "pruning", ())):
            raise ValueError(f"{path!r} is removed, but scores the tokens that pruning leaves out after it")
    branches = {path.rpartition(".")[0] for path in every if path.rpartition(".")[2] in _BRANCHES}
    for block in branches:
        if all(f"{block}.{name}" in every for name in _BRANCHES):
            raise ValueError(f"both branches of {block!r} are removed; remove the block")
    routes = [match["ssm"] for match in map(_ROUTE.fullmatch, every) if match]
    for path in set(routes):
        if routes.count(path) >= model.get_submodule(path).table_rows:
            raise ValueError(f"all routes of {path!r} are removed; remove {path!r}")
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
    """A state dict under the model's names without what belongs to removed parts; the model's own names stay.

    Of parameters with a row for each route, the rows of removed routes go.
    """
    prefixes = []
    for path in getattr(model, "removed", ()):
        parent, _, name = path.rpartition(".")
        numbers = _BRANCHES.get(name)
        prefixes += [f"{path}.", *((f"{parent}.norm{numbers}.", f"{parent}.scale{numbers}.") if numbers else ())]
    kept = {name: value for name, value in state_dict.items() if not name.startswith(tuple(prefixes))}
    if len(kept) < len(state_dict):
        _logger.info("%d entries of the checkpoint belong to removed parts", len(state_dict) - len(kept))
    for name, ssm in _cut_parameters(model).items():
        if name in kept and len(kept[name]) == ssm.table_rows:
            kept[name] = kept[name][list(ssm.kept)]
    return kept


def whole_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's state dict, with rows for all routes where some are removed."""
    cut = _cut_parameters(model)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return {name: (cut[name].table_rows, *shape[1:]) if name in cut else shape for name, shape in shapes.items()}


def _cut_parameters(model: nn.Module) -> dict[str, nn.Module]:
    """Names of parameters that lack the rows of removed routes, to the scan of those routes."""
    cut: dict[str, nn.Module] = {}
    for match in filter(None, map(_ROUTE.fullmatch, getattr(model, "removed", ()))):
        mixer = model.get_submodule(match["mixer"])
        for path, module in ((match["mixer"], mixer), (match["ssm"], mixer.ssm)):
            cut |= {f"{path}.{name}": mixer.ssm for name in module.route_parameters}
    return cut
