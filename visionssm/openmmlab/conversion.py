"""The authors' checkpoints of detectors and segmenters in the names of ours."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..checkpoints import CheckpointError, check_same, fit

# norms of outputs as their wrappers call them; PlainMamba's last output has the model's own
_OUT_NORM = re.compile(r"^(?:outnorm_?|norm_layer)(\d+)\.(weight|bias)$")
_ADAPTER = re.compile(r"^(spm|interactions|level_embed|ad_norm\d|up)\b")


def convert(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of an authors' detector or segmenter.

    Args:
        state_dict: Their weights; the backbone's begin with "backbone.".
        model: Our model, built from the config that fits.

    Returns:
        Weights that fill `model` exactly.

    Raises:
        CheckpointError: they do not.
    """
    prefix = "backbone."
    theirs = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    rest = {k: v for k, v in state_dict.items() if not k.startswith(prefix)}
    if not theirs:
        raise CheckpointError("the checkpoint has no weights of a backbone: none of its names begin with 'backbone.'")
    adapter = [k for k in theirs if _ADAPTER.match(k)]
    if adapter:
        raise CheckpointError(
            f"the checkpoint's backbone has a ViT-Adapter ({adapter[0]} ...), which is not built "
            "here; its weights have no counterpart"
        )
    backbone: Any = model.backbone
    if not hasattr(backbone.model, "checkpoint_filter_fn"):
        raise CheckpointError(f"no published checkpoint of a {type(backbone.model).__name__} is known")
    layout = backbone.model.layout
    norms = {k: match.groups() for k in theirs if (match := _OUT_NORM.match(k))}
    numbers = sorted({int(number) for number, _ in norms.values()})
    out = {}
    for name, (number, kind) in norms.items():
        out[f"backbone.out_norms.{numbers.index(int(number))}.{kind}"] = theirs.pop(name)
    last = f"out_norms.{len(backbone.out_norms) - 1}.norm"
    if f"{last}.weight" in backbone.state_dict():
        for name in [name for name in theirs if layout.rename(name) in ("norm.weight", "norm.bias")]:
            kind = name.rsplit(".", 1)[1]
            out[f"backbone.{last}.{kind}"] = theirs.pop(name)
    out |= {f"backbone.model.{k}": v for k, v in fit(theirs, backbone.model).items()}
    out |= rest
    check_same(out, model.state_dict(), "the converted checkpoint does not fit the config's model")
    return out
