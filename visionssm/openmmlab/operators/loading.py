"""Where `mmcv._ext` comes from: compiled, if mmcv has it, else from this package."""

import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, spec_from_loader
from types import ModuleType

import torch
from mmengine.logging import print_log

from ...errors import UserError

_NAME = "mmcv._ext"
_COMPILED = ("onedl-mmcv", "mmcv", "mmcv-full")  # distributions that have the operators, unlike mmcv-lite
_HOW = "'make openmmlab-compiled', or the end of docs/openmmlab.md"


class BrokenOperatorsError(UserError, ImportError):
    """mmcv's compiled operators are half installed."""


class _Finder(MetaPathFinder):
    """Answers for `mmcv._ext` alone."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _NAME:
            return None
        spec = _find_compiled(path)
        if spec is None:
            return spec_from_loader(name, _StandIn())
        assert spec.loader is not None
        spec.loader = _Compiled(spec.loader, spec.origin or "an unknown place")
        return spec


def _find_compiled(path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = None if isinstance(finder, _Finder) else finder.find_spec(_NAME, path)
        if spec is not None:
            return spec
    return None


class _Compiled(Loader):
    """Loads the compiled module, or says in a sentence why that fails."""

    def __init__(self, inner: Loader, origin: str):
        self.inner, self.origin = inner, origin

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._try(self.inner.create_module, spec)

    def exec_module(self, module: ModuleType) -> None:
        self._try(self.inner.exec_module, module)
        _say(f"mmcv's operators are the compiled ones ({self.origin})")

    def _try(self, step: Callable, argument):
        try:
            return step(argument)
        except (ImportError, OSError) as error:
            raise BrokenOperatorsError(
                f"mmcv's compiled operators {self.origin!r} do not load with PyTorch {torch.__version__}, probably "
                f"because they were compiled for another one ({error}); compile them anew ({_HOW}), or do without: "
                "pip uninstall -y onedl-mmcv mmcv && pip install --no-deps mmcv-lite"
            ) from error


class _StandIn(Loader):
    """Makes `mmcv._ext` of this package's functions."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        for name in _COMPILED:
            try:
                found = f"{name} {version(name)}"
            except PackageNotFoundError:
                continue
            raise BrokenOperatorsError(
                f"{found} is installed, but its compiled operators (mmcv/_ext) are missing; compile them ({_HOW}), or "
                f"do without: pip uninstall -y {name} && pip install --no-deps mmcv-lite"
            )
        return _Operators(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        from . import attention, boxes, convolution, focal_loss, regions

        for part in (attention, boxes, convolution, focal_loss, regions):
            vars(module).update({name: getattr(part, name) for name in part.__all__})
        _say("mmcv's operators are not compiled: torchvision's and PyTorch's stand in (visionssm.openmmlab.operators)")


class _Operators(ModuleType):
    """The stand-in; every operator that it lacks is there by name and raises when it is called."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise NotImplementedError(
                f"mmcv's operator {name!r} needs mmcv compiled ({_HOW}); visionssm.openmmlab.operators says which ones "
                "work without"
            )

        return missing


def _say(text: str) -> None:
    print_log(text, logger="current", level=logging.INFO)


def provide() -> None:
    """Let mmcv find this package's operators where it has none of its own; call it before `mmcv.ops` is imported.

    Importing `visionssm.openmmlab` does it, which configs do by `custom_imports`.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def are_compiled() -> bool:
    """Whether mmcv is there with compiled operators, working or not."""
    mmcv = find_spec("mmcv")
    return mmcv is not None and _find_compiled(mmcv.submodule_search_locations) is not None
