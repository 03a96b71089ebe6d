"""Convolution, batch norm and activation of a map (batch, channels, height, width)."""

from torch import Tensor, nn


class ConvNormAct(nn.Module):
    """A convolution, a batch norm and an activation, each a module of its own.

    timm's layer of this name keeps the activation inside a subclass of `nn.BatchNorm2d`, and with it loses the
    activation wherever a library fuses or replaces batch norms: mmcv's `fuse_conv_bn`, torch's
    `SyncBatchNorm.convert_sync_batchnorm`, mmengine's `revert_sync_batchnorm`. The names of weights are the same.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Side of the convolution.
        stride: Stride of the convolution.
        padding: Zeros on each side.
        groups: Groups of the convolution.
        bias: Bias of the convolution.
        apply_act: Whether an activation follows.
        act_layer: The activation.
        eps: Of the batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
        apply_act: bool = True,
        act_layer: type[nn.Module] = nn.ReLU,
        eps: float = 1e-5,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias, **dd)
        self.bn = nn.BatchNorm2d(out_channels, eps=eps, **dd)
        self.act = act_layer() if apply_act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, out_channels, h', w')."""
        return self.act(self.bn(self.conv(x)))
