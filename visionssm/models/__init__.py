"""Model families; importing this package registers every variant with timm."""
from ._checkpoint import CheckpointError, inert_stand_ins
from ._listing import list_models
from .groupmamba import GroupMamba
from .localmamba import LocalVMamba
from .vim import Vim
from .vmamba import VMamba

__all__ = ["CheckpointError", "GroupMamba", "LocalVMamba", "Vim", "VMamba", "inert_stand_ins", "list_models"]
