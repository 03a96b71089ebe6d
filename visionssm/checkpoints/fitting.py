"""Whether weights fit a model, and what they are where they do not."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError

_SHOWN = 8

_tell_tales: dict[str, tuple[str, ...]] = {}  # family -> patterns of names, see `Layout.tell_tale`


def register_family(family: str, patterns: tuple[str, ...]) -> None:
    """Have `identify` know a family's published files: those with a name for each of the patterns."""
    _tell_tales[family] = patterns


def identify(state_dict: Mapping[str, Any]) -> str | None:
    """Which published family the names of a state dict belong to, or None; most patterns first."""
    for family, patterns in sorted(_tell_tales.items(), key=lambda item: -len(item[1])):
        if all(any(re.search(pattern, name) for name in state_dict) for pattern in patterns):
            return family
    return None


def check_state_dict(
    state_dict: Mapping[str, Tensor],
    model: nn.Module,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Check that converted weights fill a model exactly, as far as timm will not adapt them.

    timm drops the classifier if the numbers of classes differ, and adapts the first convolution to another number of
    input channels. Everything else must agree: timm alone would load such a file half-way.

    Args:
        state_dict: Weights under the model's own names.
        model: The model; its `pretrained_cfg` names the classifier and the first convolution.
        source: The weights under the file's names, to tell what the file is.

    Raises:
        CheckpointError: names or shapes differ; the message lists how.
    """
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in state_dict.items()}
    cfg = getattr(model, "pretrained_cfg", None) or {}
    classifiers = cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    if getattr(model, "num_classes", None) != cfg.get("num_classes"):
        heads = tuple(f"{name}.{kind}" for name in classifiers for kind in ("weight", "bias"))
        expected = {k: v for k, v in expected.items() if k not in heads}
        found = {k: v for k, v in found.items() if k not in heads}
    first_conv = f"{cfg.get('first_conv')}.weight"
    if getattr(model, "in_chans", None) != (cfg.get("input_size") or (None,))[0] and first_conv in found:
        expected.pop(first_conv, None), found.pop(first_conv)

    missing = [k for k in expected if k not in found]
    unexpected = [k for k in found if k not in expected]
    reshaped = [k for k in expected if k in found and expected[k] != found[k]]
    if not (missing or unexpected or reshaped):
        return
    name = cfg.get("architecture") or type(model).__name__
    lines = [f"the checkpoint is not one of {name}"]
    family = identify(source if source is not None else state_dict)
    if family is not None:
        lines[0] += f" (its names are those of a {family} file)"
    lines += _listing("missing from the file", missing, expected)
    lines += _listing("in the file but not in the model", unexpected, found)
    if reshaped:
        lines.append(f"  of another shape ({len(reshaped)}):")
        lines += [f"    {k}: file {found[k]}, model {expected[k]}" for k in reshaped[:_SHOWN]]
        lines += [f"    ... and {len(reshaped) - _SHOWN} more"] if len(reshaped) > _SHOWN else []
    raise CheckpointError("\n".join(lines))


def check_routes(state_dict: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check that converted weights hold parameters for as many routes as the scan order of each mixer has.

    Raises:
        CheckpointError: they were made for another number of routes.
    """
    for name, mixer in model.named_modules():
        weight = state_dict.get(f"{name}.ssm.x_proj_weight")
        if weight is not None and weight.ndim == 3 and weight.shape[0] != mixer.ssm.routes:
            raise CheckpointError(
                f"the checkpoint was trained with {weight.shape[0]} routes, but scan={mixer.scan!r} has "
                f"{mixer.ssm.routes}; use a scan order of {weight.shape[0]} routes"
            )


def _listing(title: str, names: Sequence[str], shapes: Mapping[str, tuple]) -> list[str]:
    if not names:
        return []
    lines = [f"  {title} ({len(names)}):"] + [f"    {k} {shapes[k]}" for k in names[:_SHOWN]]
    return lines + ([f"    ... and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])
