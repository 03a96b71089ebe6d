"""Checkpoints of the authors' detectors and segmenters, under this package's names."""
import importlib
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..models._checkpoint import CheckpointError, unwrap
from .backbone import VisionSSMBackbone

_BACKBONE = "backbone."
_SHOWN = 8
# norms of the outputs in VMamba's and LocalVMamba's, in LocalVim's and in PlainMamba's programs, by number of the level
_OUTPUT_NORM = re.compile(r"(?:outnorm|outnorm_|norm_layer)(\d+)\.(weight|bias)")
_FINAL_NORM = re.compile(r"ln1\.(weight|bias)")
_ADAPTER = re.compile(r"(spm|interactions|level_embed|ad_norm\d)\b")


def convert_checkpoint(checkpoint: Mapping[str, Any], backbone: VisionSSMBackbone) -> dict[str, Tensor]:
    """Convert the weights of an authors' detector or segmenter.

    The backbone's are renamed by the family's own filter and must fill the backbone exactly. The names of necks and
    heads are mmdet's and mmseg's and stay.

    Args:
        checkpoint: What the authors' file holds, read without unpickling objects.
        backbone: The backbone of the configuration that the weights are for.

    Returns:
        A state dict for the whole model, its backbone's names beginning with "backbone.".

    Raises:
        CheckpointError: there are no weights of a backbone, or they do not fit.
    """
    source = {k: v for k, v in unwrap(checkpoint).items() if not k.startswith("ema_")}  # copies kept by a hook
    inside = {k.removeprefix(_BACKBONE): v for k, v in source.items() if k.startswith(_BACKBONE)}
    if not inside:
        found = ", ".join(list(source)[:_SHOWN])
        raise CheckpointError(
            f"the file is no detector or segmenter: no name begins with {_BACKBONE!r}; found: {found}")
    if any(_ADAPTER.match(name) for name in inside):
        raise CheckpointError("the checkpoint's backbone is a ViT adapter around PlainMamba, which is not part of this "
                              "package; expected the plain backbone")
    own = {k: tuple(v.shape) for k, v in backbone.state_dict().items()}
    norms = {k: _output_norm(k, backbone, own) for k in inside}
    converted = {new: inside.pop(old) for old, new in norms.items() if new is not None}
    # every family's file has a filter of this name
    to_ours = importlib.import_module(type(backbone.model).__module__).checkpoint_filter_fn
    converted |= {f"model.{k}": v for k, v in to_ours(inside, backbone.model).items()}
    _check(converted, own)
    outside = {k: v for k, v in source.items() if not k.startswith(_BACKBONE)}
    return {f"{_BACKBONE}{k}": v for k, v in converted.items()} | outside


def _output_norm(name: str, backbone: VisionSSMBackbone, own: Mapping[str, Any]) -> str | None:
    """Our name of an output norm's parameter, None for any other."""
    numbered, final = _OUTPUT_NORM.fullmatch(name), _FINAL_NORM.fullmatch(name)
    if numbered:
        level, kind = int(numbered[1]), numbered[2]
        if level not in backbone.out_indices:
            raise CheckpointError(f"the checkpoint returns level {level} of the backbone ({name}), the configuration "
                                  f"levels {list(backbone.out_indices)}")
        position = backbone.out_indices.index(level)
    elif final:
        position, kind = len(backbone.out_indices) - 1, final[1]
    else:
        return None
    borrowed = f"out_norms.{position}.norm.{kind}"  # the model's own final norm
    return borrowed if borrowed in own else f"out_norms.{position}.{kind}"


def _check(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing = [k for k in expected if k not in found]
    unexpected = [k for k in found if k not in expected]
    reshaped = [f"{k}: file {tuple(found[k].shape)}, backbone {shape}" for k, shape in expected.items()
                if k in found and tuple(found[k].shape) != shape]
    problems = [f"{what} ({len(names)}): {', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
                for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
                if names]
    if problems:
        raise CheckpointError("the checkpoint does not fit the configuration's backbone\n  " + "\n  ".join(problems))
