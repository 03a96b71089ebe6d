"""The MLP with a depthwise convolution of pyramids without position embedding (PVTv2, arXiv:2106.13797)."""

from torch import Tensor, nn


class DwConvMlp(nn.Module):
    """MLP with a 3 x 3 depthwise convolution before the activation.

    Args:
        dim: Channels in and out.
        dim_hidden: Channels between.
        act_layer: Activation.
        drop: Dropout after each projection.
    """

    def __init__(
        self,
        dim: int,
        dim_hidden: int,
        act_layer: type[nn.Module] = nn.GELU,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.fc1 = nn.Linear(dim, dim_hidden, **dd)
        self.conv = nn.Conv2d(dim_hidden, dim_hidden, 3, padding=1, groups=dim_hidden, **dd)
        self.act = act_layer()
        self.fc2 = nn.Linear(dim_hidden, dim, **dd)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to the same shape."""
        x = self.act(self.conv(self.fc1(x).permute(0, 3, 1, 2)))
        return self.drop(self.fc2(self.drop(x).permute(0, 2, 3, 1)))
