"""Gates of channels by a map's mean."""

from typing import Any

from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Squeeze and excitation (arXiv:1709.01507): channels weighed by two fully connected layers of their means.

    The layers are `nn.Linear`, as in the paper; files that hold 1 x 1 convolutions in their place load too.

    Args:
        dim: Channels.
        hidden: Channels between the layers.
        bias: Biases of the layers.
    """

    def __init__(self, dim: int, hidden: int, bias: bool = True, device=None, dtype=None):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=bias, device=device, dtype=dtype)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, dim, bias=bias, device=device, dtype=dtype)
        self.gate = nn.Sigmoid()
        self.register_load_state_dict_pre_hook(_flatten_convolutions)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, dim, h, w) to one of the same shape."""
        gate = self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


def _flatten_convolutions(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in (f"{prefix}fc1.weight", f"{prefix}fc2.weight"):
        if name in state_dict and state_dict[name].ndim == 4:
            state_dict[name] = state_dict[name].flatten(1)
