"""Linear layers in 8-bit integers that really compute so, through torchao."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

__all__ = ["METHODS", "flatten", "to_integers", "unflatten"]

METHODS = ("int8-weight-only", "int8-dynamic")


def to_integers(model: nn.Module, method: str, least: int = 1) -> nn.Module:
    """Hold the weights of plain linear layers as int8 with one scale for each output channel, in place.

    Args:
        model: Any model, in evaluation mode.
        method: "int8-weight-only" multiplies in floating point; "int8-dynamic" also rounds what enters, by the range of
            each token, and multiplies integers.
        least: Layers with fewer input channels stay.

    Returns:
        The model.

    Raises:
        ValueError: an unknown method.
        UserError: torchao is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    torchao = _torchao()
    config = torchao.Int8WeightOnlyConfig if method == METHODS[0] else torchao.Int8DynamicActivationInt8WeightConfig

    def chosen(module: nn.Module, _: str) -> bool:
        return type(module) is nn.Linear and module.in_features >= least

    torchao.quantize_(model, config(set_inductor_config=False), filter_fn=chosen)
    return model


def flatten(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict with integer weights as plain tensors, and text that tells how they belong together."""
    _torchao()
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    tensors, text = flatten_tensor_state_dict(dict(state_dict))
    return {name: value.contiguous() for name, value in tensors.items()}, text


def unflatten(tensors: Mapping[str, Tensor], text: Mapping[str, str]) -> dict[str, Tensor]:
    """The state dict that `flatten` was given.

    Raises:
        UserError: torchao is not installed, or tensors are missing.
    """
    _torchao()
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    state_dict, rest = unflatten_tensor_state_dict(dict(tensors), dict(text))
    if rest:
        raise UserError(f"the file's integer weights are incomplete: {', '.join(list(rest)[:5])} belong to nothing")
    return state_dict


def load_integers(model: nn.Module, tensors: Mapping[str, Tensor], text: Mapping[str, str]) -> None:
    """Fill a fresh model with what `flatten` gave, strictly.

    Raises:
        UserError: torchao is not installed, or the weights are not those of the model.
    """
    try:
        model.load_state_dict(unflatten(tensors, text), assign=True)
    except RuntimeError as error:
        raise UserError(f"the integer weights are not those of the model: {' '.join(str(error).split())}") from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def size(state_dict: Mapping[str, Tensor]) -> int:
    """Bytes of plain tensors."""
    return sum(value.numel() * value.element_size() for value in state_dict.values() if isinstance(value, torch.Tensor))


def _torchao() -> Any:
    try:
        import torchao.quantization
    except ImportError as error:
        raise UserError("integer layers need torchao: pip install 'visionssm[quantization]'") from error
    return torchao.quantization
