"""MambaIRv2: window attention and a scan of tokens sorted by a learned class, with prompts for what they read.

Paper: MambaIRv2: Attentive State Space Restoration, https://arxiv.org/abs/2411.15269
Original code: https://github.com/csguoh/MambaIR (Apache-2.0)
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import SS2D_NAMES, MapConv2d, SelectiveSSM, state_dtype
from ..ops import selective_scan
from ._registry import register
from ._shells import GROUP_NAMES, RGB_MEAN, GroupedRestorer, ReconstructionHead, norm

__all__ = ["MambaIRv2"]


class WindowAttention(nn.Module):
    """Attention within windows of a map, which may be shifted, with a bias by relative position (Swin).

    Queries, keys and values are given; the names follow the published files, where the block projects them.
    """

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("position", torch.empty(window**2, window**2, dtype=torch.int64), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the bias and the table of relative positions."""
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the table where it is, as for weights that were made without memory."""
        side = 2 * self.window - 1
        cell = torch.arange(self.window**2, device="cpu")
        row, column = cell // self.window, cell % self.window
        self.position.copy_((row[:, None] - row + self.window - 1) * side + column[:, None] - column + self.window - 1)

    def forward(self, qkv: Tensor, shift: int) -> Tensor:
        """Attend.

        Args:
            qkv: Queries, keys and values (b, h, w, 3 c); the sides are multiples of the window.
            shift: How far the windows are shifted, down and to the right.

        Returns:
            (b, h, w, c).
        """
        b, h, w, _ = qkv.shape
        n = self.window
        if shift:
            qkv = qkv.roll((-shift, -shift), (1, 2))
        x = qkv.view(b, h // n, n, w // n, n, 3, self.heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
        x = x.flatten(5, 6)  # (3, b, rows, columns, heads, n * n, c / heads)
        mask = self.relative_position_bias_table[self.position].permute(2, 0, 1)
        if shift:
            mask = (mask + self._shift_mask(h, w, shift, mask)).flatten(0, 2)
        # of four dimensions, which fast kernels and exporters ask for; every image takes the same mask
        q, k, v = (x.flatten(2, 4) if shift else x.flatten(1, 3)).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype).unsqueeze(0))
        y = y.view(b, h // n, w // n, self.heads, n, n, -1).permute(0, 1, 4, 2, 5, 3, 6).reshape(b, h, w, -1)
        y = self.proj(y)
        return y.roll((shift, shift), (1, 2)) if shift else y

    def _shift_mask(self, h: int, w: int, shift: int, like: Tensor) -> Tensor:
        """-100 between what the roll brought together: (rows, columns, 1, n * n, n * n)."""
        n = self.window
        row, column = (
            torch.tensor([0] * (side - n) + [1] * (n - shift) + [2] * shift, device=like.device) for side in (h, w)
        )
        region = (3 * row[:, None] + column).view(h // n, n, w // n, n).transpose(1, 2).flatten(2)
        return (region[..., None] != region[..., None, :]).to(like.dtype).mul(-100.0).unsqueeze(2)


class ConvMlp(nn.Module):
    """MLP with a depthwise convolution of the hidden map, or with one that gates half of it (the light form)."""

    def __init__(self, dim: int, hidden: int, kernel: int, light: bool):
        super().__init__()
        self.light = light
        self.fc1 = nn.Linear(dim, hidden)
        conv = hidden // 2 if light else hidden
        self.act = nn.GELU()
        self.norm = norm(conv) if light else None
        self.conv = MapConv2d(conv, conv, kernel, padding=kernel // 2, groups=conv)
        self.fc2 = nn.Linear(conv, dim)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to a map of the same shape."""
        x = self.act(self.fc1(x))
        if self.norm is not None:
            x, gate = x.chunk(2, dim=-1)
            return self.fc2(x * self.conv(self.norm(gate)))
        return self.fc2(x + self.act(self.conv(x)))


class PromptedSSM(SelectiveSSM):
    """A scan of one route whose C has a prompt added."""

    def forward(self, u: Tensor, prompt: Tensor) -> Tensor:  # type: ignore[override]
        """Scan.

        Args:
            u: Tokens (b, L, d) in the order of the scan.
            prompt: Added to C at each step (b, L, d_state).

        Returns:
            (b, L, d).
        """
        projected = F.linear(u, self.x_proj_weight.flatten(0, 1)).unsqueeze(2)
        delta, b, c = projected.split(self.splits, dim=-1)
        return selective_scan(
            u,
            delta,
            -torch.exp(state_dtype(self.A_log)),
            b,
            c + prompt.unsqueeze(2).to(c.dtype),
            state_dtype(self.D),
            state_dtype(self.dt_bias),
            dt_weight=self.dt_weight,
            out="sum",
            out_dtype=self.D.dtype,
        )


class AttentiveScan(nn.Module):
    """Sort the tokens by a learned class and scan them, with the class's prompt added to what they read.

    Args:
        dim: Channels of the map.
        dim_inner: Channels of the scan.
        d_state: States per channel.
        rank: Rank of the table of prompts.
        classes: Number of classes.
        sorted_prompt: Give a step the prompt of the token it visits. The original, and every published file, gives
            step t the prompt of the map's token t, in raster order, whatever token is visited.
        gumbel_eval: Draw classes with noise in evaluation too, as the original does.
    """

    def __init__(
        self,
        dim: int,
        dim_inner: int,
        d_state: int,
        rank: int,
        classes: int,
        sorted_prompt: bool,
        gumbel_eval: bool,
    ):
        super().__init__()
        self.sorted_prompt = sorted_prompt
        self.gumbel_eval = gumbel_eval
        self.in_proj = MapConv2d(dim, dim_inner, 1)
        self.cpe = MapConv2d(dim_inner, dim_inner, 3, padding=1, groups=dim_inner)
        self.route = nn.Sequential(nn.Linear(dim, dim // 3), nn.GELU(), nn.Linear(dim // 3, classes))
        self.table = nn.Embedding(classes, rank)
        self.ssm = PromptedSSM(dim_inner, 1, d_state, math.ceil(dim_inner / 16))
        self.out_norm = norm(dim_inner)
        self.out_proj = nn.Linear(dim_inner, dim)

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        """Mix.

        Args:
            x: A map (b, h, w, dim).
            states: Second factor of the prompts (rank, d_state).

        Returns:
            The same shape.
        """
        height, width = x.shape[1:3]
        # float16 would round classes that are close to the same
        logits = F.log_softmax(state_dtype(self.route(x.flatten(1, 2))), dim=-1)
        if self.training or self.gumbel_eval:
            choice = F.gumbel_softmax(logits, tau=1.0, hard=True)
        else:
            soft = logits.softmax(-1)
            hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
            choice = hard - soft.detach() + soft
        prompt = choice.to(x.dtype) @ (self.table.weight @ states)
        order = choice.detach().argmax(-1).argsort(dim=-1, stable=True).unsqueeze(-1)
        v = self.in_proj(x)
        v = (v * torch.sigmoid(self.cpe(v))).flatten(1, 2)
        if self.sorted_prompt:
            prompt = prompt.gather(1, order.expand(-1, -1, prompt.shape[-1]))
        y = self.ssm(v.gather(1, order.expand_as(v)), prompt)
        y = self.out_proj(self.out_norm(y))
        y = torch.zeros_like(y).scatter(1, order.expand_as(y), y)
        return y.unflatten(1, (height, width))


class AttentiveBlock(nn.Module):
    """Window attention and MLP, then attentive scan and MLP; the shortcuts of both are added once more, scaled."""

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        kernel: int,
        light: bool,
        d_state: int,
        rank: int,
        classes: int,
        sorted_prompt: bool,
        gumbel_eval: bool,
    ):
        super().__init__()
        self.shift = shift
        self.scale1 = nn.Parameter(torch.full((dim,), 1e-4))
        self.scale2 = nn.Parameter(torch.full((dim,), 1e-4))
        self.norm1, self.norm2, self.norm3, self.norm4 = (norm(dim) for _ in range(4))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn = WindowAttention(dim, heads, window)
        hidden = int(mlp_ratio * dim)
        self.mlp1, self.mlp2 = (ConvMlp(dim, hidden, kernel, light) for _ in range(2))
        self.states = nn.Embedding(rank, d_state)
        self.scan = AttentiveScan(dim, hidden, d_state, rank, classes, sorted_prompt, gumbel_eval)

    def reset_parameters(self) -> None:
        """Begin with nearly no second shortcut."""
        nn.init.constant_(self.scale1, 1e-4)
        nn.init.constant_(self.scale2, 1e-4)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to a map of the same shape."""
        y = x + self.attn(self.qkv(self.norm1(x)), self.shift)
        y = y + self.mlp1(self.norm2(y))
        x = x * self.scale1 + y
        y = x + self.scan(self.norm3(x), self.states.weight)
        y = y + self.mlp2(self.norm4(y))
        return x * self.scale2 + y


_LARGE = dict(depths=(6,) * 9)
_LIGHT = dict(
    dim=48, depths=(5,) * 4, heads=4, d_state=8, rank=32, classes=64, ratio=1.0, upsampler="pixelshuffledirect"
)


@register("mambairv2")
@register("mambairv2_small", dim=132, depths=(4,) * 6, heads=4)
@register("mambairv2_large", **_LARGE)
@register("mambairv2_light", **_LIGHT)
@register("mambairv2_dn", scale=1, upsampler="")
@register("mambairv2_jpeg", in_chans=1, scale=1, upsampler="")
@register("test_mambairv2", scale=2, **_LIGHT | dict(dim=24, depths=(2,), d_state=2, rank=4, classes=8, window=8))
class MambaIRv2(GroupedRestorer):
    """MambaIRv2 (arXiv:2411.15269), for images whose sides are at least half a window.

    The original draws the classes of tokens with noise in evaluation too, so that its results vary in the last digits,
    and sorts in an undefined order within a class. Here evaluation takes the likeliest class, and the order is that of
    the map.

    Args:
        scale: How many times larger the output's sides are.
        in_chans: Channels of the images.
        dim: Channels.
        depths: Blocks of each residual group.
        heads: Heads of the window attention.
        window: Side of the windows.
        d_state: States per channel of the scan.
        rank: Rank of the table of prompts.
        classes: Classes of tokens.
        ratio: Channels of the scan and of the MLP per channel of the map (`mlp_ratio` in the original).
        kernel: Side of the MLP's depthwise convolution.
        upsampler: "pixelshuffle", "pixelshuffledirect", "nearest+conv", or "" for `scale=1`.
        light: The light form of the MLP; None takes it with "pixelshuffledirect".
        connection: Convolutions after a group, "1conv" or "3conv".
        img_range: What images are multiplied by inside.
        sorted_prompt: Give a step the prompt of the token it visits, unlike the original and its files.
        gumbel_eval: Draw classes with noise in evaluation too, as the original does.
        pad: Mirror images to multiples of the window, and crop; else other sizes are refused.

    Raises:
        ValueError: an argument is out of its range.
    """

    undecayed = (".ssm.D", ".relative_position_bias_table")
    layout = Layout(
        own=r"^embed_norm\.",
        tell_tale=(r"^layers\.\d+\.residual_group\.layers\.\d+\.assm\.",),
        drop=r"^relative_position_index_SA$",  # computed
        names=(
            (r"\.residual_group\.layers\.", ".blocks."),
            *GROUP_NAMES,
            (r"\.wqkv\.", ".qkv."),
            (r"\.win_mhsa\.", ".attn."),
            (r"\.embeddingA\.", ".states."),
            (r"\.convffn(\d)\.(dwconv\.depthwise_conv\.0|sg\.conv)\.", r".mlp\1.conv."),
            (r"\.convffn(\d)\.sg\.norm\.", r".mlp\1.norm."),
            (r"\.convffn(\d)\.", r".mlp\1."),
            (r"\.assm\.in_proj\.0\.", ".assm.in_proj."),
            (r"\.assm\.CPE\.0\.", ".assm.cpe."),
            (r"\.assm\.embeddingB\.", ".assm.table."),
            (r"\.assm\.selectiveScan\.", ".assm."),
            (r"\.assm\.", ".scan."),
            *SS2D_NAMES,
        ),
    )

    def __init__(
        self,
        scale: int = 4,
        in_chans: int = 3,
        dim: int = 174,
        depths: Sequence[int] = (6,) * 6,
        heads: int | Sequence[int] = 6,
        window: int = 16,
        d_state: int = 16,
        rank: int = 64,
        classes: int = 128,
        ratio: float = 2.0,
        kernel: int = 5,
        upsampler: str = "pixelshuffle",
        light: bool | None = None,
        connection: str = "1conv",
        img_range: float = 1.0,
        sorted_prompt: bool = False,
        gumbel_eval: bool = False,
        pad: bool = True,
    ):
        heads = [heads] * len(depths) if isinstance(heads, int) else list(heads)
        if len(heads) != len(depths):
            raise ValueError(f"heads and depths must be of one length, got {len(heads)} and {len(depths)}")
        if any(dim % n for n in heads):
            raise ValueError(f"dim must be a multiple of the heads, got {dim} and {heads}")
        light = upsampler == "pixelshuffledirect" if light is None else light

        def block(heads: int, j: int) -> AttentiveBlock:
            shift = window // 2 if j % 2 else 0
            return AttentiveBlock(
                *(dim, heads, window, shift, ratio, kernel, light, d_state, rank, classes, sorted_prompt, gumbel_eval)
            )

        super().__init__(
            [[block(n, j) for j in range(depth)] for n, depth in zip(heads, depths, strict=True)],
            dim,
            in_chans,
            scale,
            lambda dim, out_chans, scale: ReconstructionHead(dim, out_chans, scale, upsampler),
            img_range,
            RGB_MEAN,
            connection,
            add_input=upsampler == "",
            size_multiple=window,
            pad=pad,
        )
        self.init_weights(needs_reset=False)
