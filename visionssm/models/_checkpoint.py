"""Checkpoints of the original authors: reading them safely, unwrapping them, and refusing what does not fit."""

import contextlib
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# the order is timm's: averaged weights before raw ones
_NESTINGS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 8

# a name that only this family's published files have -> what such a file is
_TELL_TALES = (
    (r"(^|\.)layers\.\d+\.blocks\.\d+\.op\.(multi_scan|.*attn\.)", "LocalVMamba"),
    (r"(^|\.)layers\.\d+\.blocks\.\d+\.(op|self_attention)\.x_proj_weight$", "VMamba"),
    (r"(^|\.)layers\.\d+\.mixer\.A_log_\d", "LocalVim"),
    (r"(^|\.)layers\.\d+\.mixer\.A_b_log$", "Vim"),
    (r"(^|\.)layers\.\d+\.mamba\.direction_Bs$", "PlainMamba"),
    (r"(^|\.)block\d+\.\d+\.attn\.mamba_g\d\.", "GroupMamba"),
)


class CheckpointError(RuntimeError):
    """A file is not the checkpoint that a model needs."""


class _InertObject:
    """Stands in for an object pickled beside the weights; takes any content and keeps none."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


class _InertMapping:
    """Stands in for a dict class; the unpickler fills exact dict types only, so it makes one."""

    def __new__(cls, *args, **kwargs):
        return OrderedDict()


def _stand_in(base: type, name: str) -> tuple[type, str]:
    return type(name.rsplit(".", 1)[-1], (base,), {}), name


# Training scripts pickle their configuration and their logs beside the weights. The unpickler is given these inert
# classes under the names in the file: nothing that the file names is imported or called.
_STAND_INS = [
    *(
        _stand_in(_InertMapping, name)
        for name in (
            "yacs.config.CfgNode",
            "mmcv.utils.config.ConfigDict",
            "mmengine.config.config.ConfigDict",
        )
    ),
    *(
        _stand_in(_InertObject, name)
        for name in (
            "argparse.Namespace",
            "builtins.getattr",  # by which the log of mmengine below names its own methods
            "mmengine.logging.history_buffer.HistoryBuffer",
            "numpy.core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy.ndarray",
            "numpy.dtype",
        )
    ),
]


@contextlib.contextmanager
def inert_stand_ins() -> Iterator[None]:
    """Within it, `torch.load(weights_only=True)` reads files that pickle configs, replaced by inert objects."""
    with torch.serialization.safe_globals(_STAND_INS):
        yield


def check_checkpoint_file(path: str | os.PathLike) -> None:
    """Check that a file can be a checkpoint, before a model is built for it.

    Raises:
        CheckpointError: the file is missing, truncated, no checkpoint, or pickles objects that are not allowed.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"no checkpoint file at {str(path)!r}")
    with open(path, "rb") as file:
        head = file.read(9)
    if str(path).endswith(".safetensors"):
        _check_safetensors(path, head)
    elif head.startswith(b"PK"):
        _check_torch_zip(path)
    elif not head.startswith(b"\x80"):  # protocol byte of the pickles that PyTorch wrote before its zip format
        raise CheckpointError(
            f"{str(path)!r} is no checkpoint: expected a file written by torch.save or safetensors, "
            f"found {os.path.getsize(path)} bytes that begin with {head!r}"
        )


def _check_safetensors(path, head: bytes) -> None:
    size = os.path.getsize(path)
    header = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:9] != b"{":
        raise CheckpointError(f"{str(path)!r} is no safetensors file")
    if 8 + header > size:
        raise CheckpointError(f"{str(path)!r} is truncated: its header needs {8 + header} bytes, the file has {size}")


def _check_torch_zip(path) -> None:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{str(path)!r} is truncated: it begins like a file of torch.save but its end is missing")
    with inert_stand_ins():
        try:
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        except RuntimeError as error:
            raise CheckpointError(f"{str(path)!r} is a zip archive but no file of torch.save: {error}") from error
    if unknown:
        raise CheckpointError(
            f"{str(path)!r} pickles objects beside its tensors that are not on the list of harmless ones: "
            f"{', '.join(sorted(unknown))}; keep only its state dict (where the file is trusted) and load that"
        )


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Take the weights out of a training checkpoint's nesting and strip the prefixes of wrapping modules.

    Entries under "model_ema", "ema", "state_dict_ema" are preferred, then "state_dict", "model".

    Raises:
        CheckpointError: there are no tensors.
    """
    while True:
        inner = next((state_dict[k] for k in _NESTINGS if isinstance(state_dict.get(k), Mapping)), None)
        if inner is None:
            break
        state_dict = inner
    if not any(isinstance(v, Tensor) for v in state_dict.values()):
        found = ", ".join(list(map(str, state_dict))[:_SHOWN]) or "nothing"
        raise CheckpointError(f"the checkpoint holds no tensors; expected a state dict, found: {found}")
    out = {}
    for name, value in state_dict.items():
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        out[name] = value
    return out


def identify(state_dict: Mapping[str, Any]) -> str | None:
    """Which published family the names of a state dict belong to, or None."""
    for pattern, family in _TELL_TALES:
        if any(re.search(pattern, name) for name in state_dict):
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
