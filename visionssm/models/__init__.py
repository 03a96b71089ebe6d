"""Model families, one file each; importing this package registers every variant with timm."""

import importlib
import pkgutil

from ..checkpoints import CheckpointError, inert_stand_ins
from ._listing import kind_of, list_kinds, list_models
from ._removal import removable, remove

__all__ = ["CheckpointError", "inert_stand_ins", "kind_of", "list_kinds", "list_models", "removable", "remove"]

for _file in pkgutil.iter_modules(__path__):
    if not _file.name.startswith("_"):
        _family = importlib.import_module(f"{__name__}.{_file.name}")
        __all__ += _family.__all__
        globals().update({name: getattr(_family, name) for name in _family.__all__})
