"""RSMamba: a plain model for scenes seen from above, whose blocks read the tokens forwards, backwards and shuffled.

Paper: RSMamba: Remote Sensing Image Classification with State Space Model, https://arxiv.org/abs/2403.19654
Original code and weights: https://github.com/KyanChen/RSMamba (Apache-2.0)

The three paths share one mixer; a gate of each block weighs them. All blocks share one norm. Images of any size work:
incomplete patches are padded, the position embedding is resampled.
"""

import copy
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import MambaMixer, PatchEmbed, RemovedBlock, state_dtype
from ..ops import causal_conv1d
from ..scans import num_routes, scan_table, shuffled_table
from ._builder import Kit, Place, build_model, family_cfg
from ._plain import Grid, PlainModel

__all__ = ["RSMamba"]

_SEED = 1000  # of the first block's permutation
_SEQUENCES = ("raster", "bidirectional")  # orders that do not look at the map


class PathMixer(MambaMixer):
    """`MambaMixer` of one set of weights, whose paths are not merged."""

    sums_routes = False

    def __init__(self, dim: int, d_state: int, dim_inner: int, proj_drop: float, device=None, dtype=None):
        if dim_inner % dim:
            raise ValueError(f"the scan's channels must be a multiple of the tokens', got {dim_inner} and {dim}")
        expand = dim_inner // dim
        super().__init__(dim, "raster", d_state, expand=expand, proj_drop=proj_drop, device=device, dtype=dtype)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:  # type: ignore[override]
        """Tokens (b, L, d) and a scan table (k, L) to what each path makes of them, (b, L, k, d)."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = causal_conv1d(u, self.conv_weight, self.conv_bias, order, activation="silu")
        y = self.ssm(u, order, num_tokens=x.shape[1], by_step=True, out="route")
        return self.proj_drop(self.out_proj(y * self.gate_act(z).unsqueeze(2)))


class PathGate(nn.Module):
    """Weights of the paths from the means of all of them, and their sum by these weights.

    Args:
        dim: Channels of the tokens.
        paths: Number of paths k.
    """

    def __init__(self, dim: int, paths: int, device=None, dtype=None):
        super().__init__()
        self.proj = nn.Linear(paths * dim, paths, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(b, L, k, d) to (b, L, d)."""
        weights = self.proj(x.mean(1).flatten(1)).softmax(-1)
        return (x * weights[:, None, :, None]).sum(2)


class PathBlock(nn.Module):
    """x + drop_path(gate(mixer(norm(x)))); the norm is the model's.

    Args:
        mixer: Makes what each path makes of the tokens.
        gate: Merges the paths; None takes their mean.
        scan: Name of the fixed paths' scan order.
        seed: Seed of the shuffled path in evaluation; None for no shuffled path.
        drop_path: Rate of stochastic depth.
    """

    def __init__(
        self,
        mixer: nn.Module,
        gate: nn.Module | None,
        scan: str,
        seed: int | None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.mixer = mixer
        self.gate = gate
        self.scan = scan
        self.seed = seed
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, order: Tensor, with_hidden: bool, norm: nn.Module) -> Tensor | tuple[Tensor, Tensor]:
        """Mix the tokens (b, L, d) along the paths of a scan table (k, L); float32 in and out, float64 if so the model.

        Returns:
            The stream after the block; with `with_hidden`, also what was added to it, before drop path.
        """
        y = self.mixer(norm(x.to(norm.weight.dtype)), order)
        hidden = state_dtype(y.mean(2) if self.gate is None else self.gate(y))
        x = x + self.drop_path(hidden)
        return (x, hidden) if with_hidden else x


class RSMamba(PlainModel):
    """RSMamba (arXiv:2403.19654).

    In training the shuffled path is drawn anew by every block at every call; in evaluation each block has a permutation
    of its own, fixed by a seed, so that two calls agree. The original draws in evaluation too: `redraw=True`.

    Args:
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        dim_inner: Channels of the scan, a multiple of `embed_dim`; twice as many if None.
        patch_size: Side of a patch.
        stride: Distance of neighbouring patches.
        d_state: States per channel of the scan.
        scan: Name of the fixed paths' scan order, see `visionssm.scans`; all paths share the weights.
        shuffle: Have a shuffled path too.
        gated: Weigh the paths by a gate; else take their mean.
        redraw: Draw the permutations anew in evaluation too.
        seed: Block i shuffles by the order `shuffle<seed + i>` in evaluation.
        class_token: Where a class token stands: "first", "middle" or "last"; None for no class token. The orders
            must be of sequences then, "raster" or "bidirectional".
        norm_eps: Epsilon of the norms.
        **shared: Further arguments of `PlainModel`; with `global_pool="token"` there is no norm after pooling.

    Attributes:
        generator: Of the permutations that are drawn, a `torch.Generator`; None takes PyTorch's own.

    Raises:
        ValueError: an argument is out of its range, or does not fit another one.
    """

    undecayed = (".ssm.D", ".ssm.dt_bias", ".conv_bias")
    unused = ("act_layer", "shuffle_rate")
    linear_std = None
    layout = Layout(
        own=r"^blocks\.0\.mixer\.ssm\.D$",
        tell_tale=(r"(^|\.)pre_norm\.weight$", r"(^|\.)layers\.\d+\.A_log$", r"(^|\.)patch_embed\.projection\."),
        names=(
            (r"^backbone\.", ""),
            (r"^head\.fc\.", "head."),
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^gate_layers\.(\d+)\.0\.", r"blocks.\1.gate.proj."),
            (r"^layers\.(\d+)\.conv1d\.(weight|bias)$", r"blocks.\1.mixer.conv_\2"),
            (r"^layers\.(\d+)\.x_proj\.weight$", r"blocks.\1.mixer.ssm.x_proj_weight"),
            (r"^layers\.(\d+)\.dt_proj\.(weight|bias)$", r"blocks.\1.mixer.ssm.dt_\2"),
            (r"^layers\.(\d+)\.(A_log|D)$", r"blocks.\1.mixer.ssm.\2"),
            (r"^layers\.(\d+)\.", r"blocks.\1.mixer."),
            (r"^ln1\.", "norm."),
            (r"^ln2\.", "fc_norm."),
        ),
    )

    def __init__(
        self,
        embed_dim: int = 192,
        depth: int = 24,
        dim_inner: int | None = None,
        patch_size: int = 16,
        stride: int = 8,
        d_state: int = 16,
        scan: str = "bidirectional",
        shuffle: bool = True,
        gated: bool = True,
        redraw: bool = False,
        seed: int = _SEED,
        class_token: str | None = None,
        global_pool: str = "avg",
        norm_eps: float = 1e-6,
        **shared: Any,
    ):
        if class_token not in (None, "first", "middle", "last"):
            raise ValueError(f"class_token must be 'first', 'middle', 'last' or None, got {class_token!r}")
        if class_token and scan not in _SEQUENCES:
            raise ValueError(
                f"scan={scan!r} is an order of the map, which has no place for a class token; take "
                f"{' or '.join(map(repr, _SEQUENCES))}, or class_token=None"
            )
        if seed < 1:
            raise ValueError(f"seed must be 1 or more, got {seed}")
        paths = num_routes(scan) + shuffle

        def block(place: Place, kit: Kit) -> PathBlock:
            dim, dd = place.dim, kit.dd
            return PathBlock(
                PathMixer(dim, d_state, dim_inner or 2 * dim, kit.proj_drop, **dd),
                PathGate(dim, paths, **dd) if gated and paths > 1 else None,
                scan,
                seed + place.index if shuffle else None,
                place.drop_path,
            )

        def patch_embed(in_chans: int, dim: int, kit: Kit) -> PatchEmbed:
            return PatchEmbed(in_chans, dim, patch_size, stride, pad=True, bias=False, **kit.dd)

        super().__init__(
            embed_dim,
            depth,
            patch_embed=patch_embed,
            block=block,
            extra_tokens=(1, class_token) if class_token else (0, "middle"),
            global_pool=global_pool,
            norm_eps=norm_eps,
            **shared,
        )
        self.scan = scan
        self.redraw = redraw
        self.generator: torch.Generator | None = None
        self.pre_norm = copy.deepcopy(self.norm)  # of all blocks
        self.fc_norm = None if global_pool == "token" else copy.deepcopy(self.norm)

    def init_own_weights(self, mode: str) -> None:
        """The original's mixers keep PyTorch's initial step size, near 0.7."""
        super().init_own_weights(mode)
        for block in self.blocks:
            bias = block.mixer.ssm.dt_bias
            bound = block.mixer.ssm.dt_weight.shape[-1] ** -0.5
            nn.init.uniform_(bias, -bound, bound)
        if isinstance(self.head, nn.Linear):
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names per layer, for layer-wise learning rates; the blocks' norm goes with the stem."""
        groups = super().group_matcher(coarse)
        return dict(groups, stem=groups["stem"] + r"|^pre_norm")

    def run_block(
        self,
        index: int,
        x: Tensor,
        grid: Grid,
        with_hidden: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One block on the stream (b, L, d); with `with_hidden`, also what it adds to the stream."""
        block = self.blocks[index]
        if isinstance(block, RemovedBlock):
            return block(x, with_hidden=with_hidden)
        # a class token stands in the sequence, not on the map
        size = (grid.height, grid.width) if self.cls_token is None else (1, grid.height * grid.width + 1)
        if block.seed is None:
            order = scan_table(block.scan, *size, x.device)
        elif self.training or self.redraw:
            # out here, so that a recomputed block reads the same
            order = shuffled_table(block.scan, *size, x.device, self.generator)
        else:
            order = scan_table(f"{block.scan}+shuffle{block.seed}", *size, x.device)
        args = (x, order, with_hidden, self.pre_norm)
        return checkpoint(block, *args) if self.grad_checkpointing else block(*args)

    def pool(self, x: Tensor) -> Tensor:
        """Tokens (b, L, d) to (b, d), normalised but for a class token; unchanged for a pool of ""."""
        pooled = super().pool(x)
        return pooled if self.global_pool in ("", "token") or self.fc_norm is None else self.fc_norm(pooled)


_cfg = family_cfg(
    license="apache-2.0",
    origin_url="https://github.com/KyanChen/RSMamba",
    paper_name="RSMamba: Remote Sensing Image Classification with State Space Model",
    paper_ids="arXiv:2403.19654",
    first_conv="patch_embed.proj",
    classifier="head",
    fixed_input_size=True,
)


def _of(mean: tuple[float, ...], std: tuple[float, ...], classes: int) -> dict[str, Any]:
    """Configuration of a data set; means and deviations of pixels are from 0 to 255."""
    return _cfg(num_classes=classes, mean=tuple(v / 255 for v in mean), std=tuple(v / 255 for v in std))


_UC_MERCED = _of((123.770241, 125.41281689, 115.35737613), (44.17314347, 41.63589266, 39.5737929), 21)
_AID = _of((101.02608706, 103.9996994, 93.50157708), (40.36728927, 37.11132278, 35.90649976), 30)
_RESISC45 = _of((93.847266, 97.20128819, 87.66547902), (37.10216765, 34.61650149, 33.70191772), 45)

default_cfgs = generate_default_cfgs(
    {
        "rsmamba_base.uc_merced": _UC_MERCED,
        "rsmamba_base.aid": _AID,
        "rsmamba_base.resisc45": _RESISC45,
        "rsmamba_large.uc_merced": _UC_MERCED,
        "rsmamba_large.aid": _AID,
        "rsmamba_large.resisc45": _RESISC45,
        "rsmamba_huge.uc_merced": _UC_MERCED,
        "rsmamba_huge.aid": _AID,
        "rsmamba_huge.resisc45": _RESISC45,
        "test_rsmamba.untrained": _cfg(input_size=(3, 64, 64)),
    }
)


@register_model
def rsmamba_base(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-B; the tag chooses the data set, UC Merced without one."""
    return build_model(RSMamba, "rsmamba_base", pretrained, kwargs, embed_dim=192, depth=24)


@register_model
def rsmamba_large(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-L; the tag chooses the data set, UC Merced without one."""
    return build_model(RSMamba, "rsmamba_large", pretrained, kwargs, embed_dim=256, depth=36)


@register_model
def rsmamba_huge(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-H; the tag chooses the data set, UC Merced without one."""
    return build_model(RSMamba, "rsmamba_huge", pretrained, kwargs, embed_dim=320, depth=48)


@register_model
def test_rsmamba(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    return build_model(RSMamba, "test_rsmamba", pretrained, kwargs, img_size=64, embed_dim=48, depth=4, d_state=8)
