"""Model families; importing this package registers every variant with timm."""

from ..checkpoints import CheckpointError, inert_stand_ins
from ._listing import kind_of, list_kinds, list_models
from .groupmamba import GroupMamba
from .localmamba import LocalVim, LocalVMamba
from .plainmamba import PlainMamba
from .vim import Vim
from .vmamba import VMamba

__all__ = [
    "CheckpointError",
    "GroupMamba",
    "LocalVMamba",
    "LocalVim",
    "PlainMamba",
    "VMamba",
    "Vim",
    "inert_stand_ins",
    "kind_of",
    "list_kinds",
    "list_models",
]
