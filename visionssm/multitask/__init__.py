"""Several dense tasks at once: decoders over the maps of any backbone, whole networks, losses.

Metrics are in `visionssm.multitask.metrics`, which needs torchmetrics.
"""

from ._model import MTMamba
from ._registry import create_model, list_models
from .losses import MultiTaskLoss
from .mtmamba import MTMambaDecoder

__all__ = ["MTMamba", "MTMambaDecoder", "MultiTaskLoss", "create_model", "list_models"]
