"""MambaMixer: selective mixing of tokens and of channels, and weighted averages of all earlier features.

Paper: MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection,
https://arxiv.org/abs/2403.19888. Neither code nor weights were published.

There is no model to register here: the paper's text leaves its ViM2 open in several places, and no reading of it gives
all published sizes. These are the parts that it defines. Maps are (batch, height, width, channels).
"""

import math
from collections.abc import Sequence

import torch
from timm.layers import DropPath, LayerNorm, calculate_drop_path_rates
from torch import Tensor, nn

from ..layers import SS2D, SelectiveSSM, split_linear
from ..ops import causal_conv1d
from ..scans import scan_table

__all__ = ["ChannelMixer", "TokenMixer", "WeightedAverage", "WeightedAverageStage"]


class TokenMixer(SS2D):
    """Selective token mixer: VMamba's mixer, gated, of twice the width.

    Args:
        dim: Channels of the map.
        expand: Channels of the scan over channels of the map.
        d_state: States per channel.
        scan: Name of the scan order.
        proj_drop: Dropout after the output projection.
    """

    def __init__(
        self,
        dim: int,
        expand: int = 2,
        d_state: int = 16,
        scan: str = "cross",
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dt_rank = math.ceil(dim / 16)
        super().__init__(
            dim,
            expand * dim,
            d_state,
            dt_rank,
            scan,
            gated=True,
            conv_bias=True,
            proj_drop=proj_drop,
            device=device,
            dtype=dtype,
        )


class ChannelMixer(nn.Module):
    """Selective channel mixer: the channels of each token are a sequence of numbers, scanned forwards and backwards.

    A Mamba mixer of one channel after a projection of the token: causal convolution and scan of each direction with
    parameters of its own, sum, norm, gate, projection. Tokens do not meet. The paper does not fix how a map of any size
    is mixed along its channels; that tokens share all parameters, and the place of the norm, are our reading.

    Args:
        dim: Channels of the tokens.
        expand: Length of the scanned sequence over channels of the tokens.
        d_state: States of the scan.
        d_conv: Taps of the convolution.
        proj_drop: Dropout after the output projection.
    """

    def __init__(
        self,
        dim: int,
        expand: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        length = expand * dim
        self.in_proj = nn.Linear(dim, 2 * length, bias=False, **dd)
        self.conv_weight = nn.Parameter(torch.empty(2, 1, d_conv, **dd))
        self.conv_bias = nn.Parameter(torch.empty(2, 1, **dd))
        self.act = nn.SiLU()
        self.ssm = SelectiveSSM(1, 2, d_state, dt_rank=1, shared_input=False, **dd)
        self.out_norm = LayerNorm(length, **dd)
        self.out_proj = nn.Linear(length, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the convolutions as PyTorch does; the other parts initialise themselves."""
        bound = self.conv_weight.shape[-1] ** -0.5
        nn.init.uniform_(self.conv_weight, -bound, bound)
        nn.init.uniform_(self.conv_bias, -bound, bound)

    def scan(self, u: Tensor) -> Tensor:
        """Sequences of numbers (b, length) to (b, length), in the parameters' dtype."""
        length = u.shape[1]
        order = scan_table("bidirectional", 1, length, u.device)
        u = causal_conv1d(u.unsqueeze(2), self.conv_weight, self.conv_bias, order, activation="silu")
        return self.ssm(u, order, num_tokens=length, by_step=True).squeeze(2)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of tokens (b, ..., dim); returns the same shape."""
        u, z = split_linear(self.in_proj, x)
        y = self.scan(u.flatten(0, -2)).view(u.shape)
        return self.proj_drop(self.out_proj(self.out_norm(y) * self.act(z)))


class WeightedAverage(nn.Module):
    """Learned sums of all earlier outputs, in the place of shortcuts.

    The m-th sum is sum_{i < m} weight[m, i] outputs[i] for m = 1, ..., items + 1, outputs[0] being the stage's input
    and outputs[i] that of its i-th mixer. The weights, a number for each pair, are 1 at first: then a mixer reads what
    it would in a stack of residual branches.

    Args:
        items: Mixers of the stage; one more sum is the stage's output.
    """

    def __init__(self, items: int, device=None, dtype=None):
        super().__init__()
        self.items = items
        self.weight = nn.Parameter(torch.empty((items + 1) * (items + 2) // 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise to plain sums."""
        nn.init.ones_(self.weight)

    def row(self, m: int) -> Tensor:
        """The m weights of the m-th sum, a view."""
        first = m * (m - 1) // 2
        return self.weight[first : first + m]

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """The sum that follows on m outputs of one shape.

        Raises:
            ValueError: there are no outputs, or more than mixers and input.
        """
        if not 1 <= len(outputs) <= self.items + 1:
            raise ValueError(f"expected from 1 to {self.items + 1} outputs, got {len(outputs)}")
        weights = self.row(len(outputs)).unbind()
        total = weights[0] * outputs[0]
        for weight, output in zip(weights[1:], outputs[1:], strict=True):
            total = total + weight * output
        return total

    def extra_repr(self) -> str:
        return f"items={self.items}"


class WeightedAverageStage(nn.Module):
    """Mixers, each after a norm, that read weighted sums of the stage's input and all outputs before them.

    Every output is kept to the end of the stage.

    Args:
        dim: Channels of the map.
        mixers: Each keeps the shape of a map; the paper's ViM2 has two `TokenMixer` for each `ChannelMixer`.
        drop_path_rate: Stochastic depth of the last mixer's output; grows linearly from 0.
        norm_layer: Norm over channels.
    """

    def __init__(
        self,
        dim: int,
        mixers: Sequence[nn.Module],
        drop_path_rate: float = 0.0,
        norm_layer: type[nn.Module] = LayerNorm,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norms = nn.ModuleList(norm_layer(dim, **dd) for _ in mixers)
        self.mixers = nn.ModuleList(mixers)
        self.drop_paths = nn.ModuleList(
            DropPath(rate) for rate in calculate_drop_path_rates(drop_path_rate, len(self.mixers))
        )
        self.average = WeightedAverage(len(self.mixers), **dd)

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map of the same shape."""
        outputs = [x]
        for norm, mixer, drop_path in zip(self.norms, self.mixers, self.drop_paths, strict=True):
            outputs.append(drop_path(mixer(norm(self.average(outputs)))))
        return self.average(outputs)
