"""Whether weights fit a model: the one report of differences, and the one rule for the classifier."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError
from .reading import Checkpoint, unwrap

_SHOWN = 8

_logger = logging.getLogger(__name__)

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


def fit(weights: Mapping[str, Any], model: nn.Module, classifier: str = "keep") -> dict[str, Tensor]:
    """Convert weights, in any layout that the model's class knows, to those that a model needs.

    **The classifier**: one in the file that fits the model is kept, whatever number of classes the model's
    configuration names.

    Args:
        weights: A state dict, or what `unwrap` makes one.
        model: The model. Its `checkpoint_filter_fn(weights, model)` converts; without one, names must agree.
        classifier: What becomes of a classifier in the file that does not fit, or that it lacks. "keep": it is an
            error. "anew": the model's begins anew, and a warning names both numbers of classes. "unused": the model's
            begins anew in silence, because nobody asks it.

    Returns:
        Weights under the model's names, without a classifier where that begins anew.

    Raises:
        CheckpointError: the weights do not fill the model; the message lists how. The first convolution may be of other
            channels if the model's are not those of its configuration: timm adapts it.
    """
    convert = getattr(model, "checkpoint_filter_fn", None)
    if convert is not None:
        state = convert(weights, model)
    else:
        state = unwrap(weights)
        check_state_dict(state, model)
    names = classifier_names(model)
    ours, theirs = ({k: tuple(v.shape) for k, v in d.items() if k in names} for d in (model.state_dict(), state))
    if ours == theirs:
        return state
    if ours and classifier != "unused":
        found = next((f"is of {shape[0]} classes" for shape in theirs.values()), "is missing")
        wanted = next(f"is of {shape[0]}" for shape in ours.values())
        both = f"the checkpoint's classifier {found}, the model's {wanted}"
        if classifier == "keep":
            shapes = (f"{k}: file {theirs.get(k, 'nothing')}, model {shape}" for k, shape in ours.items())
            raise CheckpointError(
                f"{both}: build the model with num_classes of the file, or ask for another number by num_classes to "
                "begin a new classifier\n    " + "\n    ".join(shapes)
            )
        _logger.warning("%s: it begins anew", both)
    return {k: v for k, v in state.items() if k not in names}


def load(checkpoint: Checkpoint, model: nn.Module, classifier: str = "keep") -> None:
    """Fill a model from a file, in any layout that its class knows, completely or not at all.

    Args:
        checkpoint: What was read.
        model: The model.
        classifier: As for `fit`; where it begins anew, the model's own stays.

    Raises:
        CheckpointError: the file does not fill it; the message lists how.
    """
    try:
        state = fit(checkpoint.weights, model, classifier)
        if classifier != "keep":
            state = {
                name: value for name, value in model.state_dict().items() if name in classifier_names(model)
            } | state
        check_same(state, model.state_dict(), f"it is not one of {_name(model)}")
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {checkpoint.path} does not fit the model: {error}") from error
    model.load_state_dict(state)


def classifier_names(model: nn.Module) -> set[str]:
    """Names that the parameters of a model's classifiers have, whether it has any or not."""
    heads = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    return {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}


def _name(model: nn.Module) -> str:
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__


def check_state_dict(
    state_dict: Mapping[str, Tensor],
    model: nn.Module,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Check that converted weights fill a model exactly, as far as neither `fit` nor timm decides.

    `fit` decides about a classifier of another number of classes, or a missing one; timm adapts the first convolution
    to another number of input channels. Everything else must agree: timm alone would load such a file half-way.

    Args:
        state_dict: Weights under the model's own names.
        model: The model; its `pretrained_cfg` names the classifier and the first convolution.
        source: The weights under the file's names, to tell what the file is.

    Raises:
        CheckpointError: names or shapes differ; the message lists how.
    """
    expected: Mapping[str, Tensor] = model.state_dict()
    found: Mapping[str, Tensor] = dict(state_dict)
    names = classifier_names(model)
    ours, theirs = ({v.shape[0] for k, v in d.items() if k in names} for d in (expected, found))
    if ours != theirs:
        expected, found = ({k: v for k, v in d.items() if k not in names} for d in (expected, found))
    cfg = getattr(model, "pretrained_cfg", None) or {}
    first_conv = f"{cfg.get('first_conv')}.weight"
    if getattr(model, "in_chans", None) != (cfg.get("input_size") or (None,))[0] and first_conv in found:
        expected, found = ({k: v for k, v in d.items() if k != first_conv} for d in (expected, found))
    title = f"the checkpoint is not one of {_name(model)}"
    family = identify(source if source is not None else state_dict)
    check_same(found, expected, title + (f" (its names are those of a {family} file)" if family else ""))


def check_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], title: str) -> None:
    """Check that weights have the names and shapes of a module's.

    Args:
        found: What is to be loaded.
        expected: State dict of the module.
        title: First line of the message.

    Raises:
        CheckpointError: names or shapes differ; the message lists the first of each kind.
    """
    missing = [f"{k} {tuple(v.shape)}" for k, v in expected.items() if k not in found]
    unexpected = [f"{k} {tuple(v.shape)}" for k, v in found.items() if k not in expected]
    reshaped = [
        f"{k}: file {tuple(found[k].shape)}, model {tuple(v.shape)}"
        for k, v in expected.items()
        if k in found and found[k].shape != v.shape
    ]
    lines = [
        *_listing("missing from the file", missing),
        *_listing("in the file but not in the model", unexpected),
        *_listing("of another shape", reshaped),
    ]
    if lines:
        raise CheckpointError("\n".join([title, *lines]))


def _listing(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    more = [f"    ... and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
    return [f"  {title} ({len(entries)}):", *(f"    {entry}" for entry in entries[:_SHOWN]), *more]


def check_routes(state_dict: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check that converted weights hold parameters for as many routes as the scan order of each mixer has.

    Raises:
        CheckpointError: they were made for another number of routes.
    """
    for name, mixer in model.named_modules():
        weight, routes = (
            state_dict.get(f"{name}.ssm.x_proj_weight"),
            getattr(getattr(mixer, "ssm", None), "routes", None),
        )
        if weight is not None and routes is not None and weight.ndim == 3 and weight.shape[0] != routes:
            raise CheckpointError(
                f"the checkpoint was trained with {weight.shape[0]} routes, but scan={mixer.scan!r} has "
                f"{routes}; use a scan order of {weight.shape[0]} routes"
            )
