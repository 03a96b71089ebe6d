"""How every family builds its models: timm's builder, with authors' files read safely and TorchScript declined."""

from collections.abc import Callable
from typing import Any, TypeVar

from timm.models import build_model_with_cfg
from torch import nn

from ..checkpoints import check_checkpoint_file, inert_stand_ins

Model = TypeVar("Model", bound=nn.Module)


class VisionModel(nn.Module):
    """Base of the model classes; declares what they do not support."""

    def __prepare_scriptable__(self):
        raise NotImplementedError(
            f"{type(self).__name__} cannot be scripted: TorchScript is deprecated by PyTorch and knows no operators "
            "with Python kernels; use torch.compile, torch.export or torch.fx"
        )


def build_model(
    model_cls: type[Model],
    variant: str,
    pretrained: bool,
    filter_fn: Callable[..., dict],
    out_indices: tuple[int, ...] = (0, 1, 2, 3),
    **kwargs: Any,
) -> Model:
    """Build a registered variant through timm.

    Args:
        model_cls: The model class.
        variant: Name of the variant.
        pretrained: Load the weights that the variant's configuration, or its overlay, names.
        filter_fn: Maps a checkpoint to the model's own names, strictly.
        out_indices: Default feature levels of `features_only`.
        **kwargs: Arguments of timm's builder and of the model class, which refuses unknown ones.

    Raises:
        CheckpointError: the weights do not fit, or the file is none.
    """
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    if pretrained and overlay.get("file") and not overlay.get("custom_load"):
        check_checkpoint_file(overlay["file"])
    with inert_stand_ins():
        return build_model_with_cfg(
            model_cls,
            variant,
            pretrained,
            pretrained_filter_fn=filter_fn,
            feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
            **kwargs,
        )
