"""What plain models share: one map of patches from stem to head, and perhaps a class token among them."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from timm.layers import calculate_drop_path_rates, get_device_dtype, global_pool_nlc, to_2tuple, trunc_normal_
from timm.models import checkpoint
from torch import Tensor, nn

from .._timm_compat import feature_take_indices, update_model_input_size
from ..errors import CheckpointError
from ..layers import insert_tokens, remove_tokens, resample_pos_embed, state_dtype, take_tokens
from ..layers.token_pruning import best_tokens, kept_count, token_scores
from ..scans import token_positions
from ._builder import Kit, Place, VisionModel, make_kit

_logger = logging.getLogger(__name__)


class Grid(NamedTuple):
    """Rows and columns of the map of patches, and what a model computes once for all its blocks.

    `kept` are the places (b, L) of the tokens that are left in the whole sequence, or None for all of them; with
    `align` scans decay over the others.
    """

    height: int
    width: int
    shared: Any = None
    kept: Tensor | None = None
    align: bool = True


class PlainModel(VisionModel):
    """Base of models of one map: patch and position embedding, blocks on a float32 stream, norm, classifier.

    A subclass hands over how its parts are made; each is given the channels, or a block's place, and the `Kit` that
    all parts share. Intermediates are the stream after a block, or what the block adds to it.

    Args:
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        patch_embed: patch_embed(in_chans, dim, kit) makes what turns images into a map; it has `stride` and
            `grid_size(height, width)`.
        block: block(place, kit) makes a block, called as `visionssm.layers.StreamBlock`.
        extra_tokens: Number and place of tokens beside the patches, see `visionssm.scans.token_positions`: a class
            token, or registers.
        embed_extra_tokens: The position embedding has entries for the extra tokens too.
        feature_stream: Intermediates are the residual stream after a block; else what the block's mixer gives.
        final_norm: final_norm(dim) makes the last norm; `norm_layer` if None.
        img_size: Size of the image that the position embedding is made for; other sizes resample it at run time.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for no classifier.
        shuffle_rate: In training, show the last block its tokens in a random order with this probability; it grows
            linearly from 0 (stochastic layer-wise shuffle, arXiv:2408.17081, section 3.2).
        pruning: Pairs (block, share): after that block only this share of the patches stays, those with the highest
            scores in each image (ToP-ViM, arXiv:2409.18962); for models of Mamba's mixer.
        pruning_score: "clipped" scores a token by the positive values of the block's merged scan, as the paper; "sum"
            by all, as its code.
        pruning_align: States decay over what was left out, as in the paper; else as if it had never been there.
        global_pool: "token" classifies by the extra tokens, "avg", "max" or "avgmax" by the patch tokens; "" pools
            nothing.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the projections of the mixers.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        act_layer: Activation of MLPs, a name or a class.
        norm_layer: Norm over channels, a name or a class.
        norm_eps: Epsilon of the norms.
        weight_init: "" as published, another mode of the class, or "skip".

    Raises:
        TypeError: an unknown argument.
        ValueError: an argument is out of its range, or two do not fit each other.
    """

    out_indices = 3
    output_fmt = "NLC"
    grad_checkpointing = False
    prunes_tokens: ClassVar[bool] = False  # whether its mixers can be given a part of the tokens

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        *,
        patch_embed: Callable[[int, int, Kit], nn.Module],
        block: Callable[[Place, Kit], nn.Module],
        extra_tokens: tuple[int, str] = (0, "middle"),
        embed_extra_tokens: bool = True,
        feature_stream: bool = True,
        final_norm: Callable[..., nn.Module] | None = None,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shuffle_rate: float = 0.0,
        pruning: Sequence[tuple[int, float]] = (),
        pruning_score: str = "clipped",
        pruning_align: bool = True,
        act_layer: str | type[nn.Module] = "gelu",
        norm_layer: str | type[nn.Module] = "layernorm",
        norm_eps: float | None = 1e-5,
        weight_init: str = "",
        device=None,
        dtype=None,
        **unknown: Any,
    ):
        super().__init__()
        self.check_arguments(
            unknown,
            weight_init,
            feature_stream=feature_stream,
            shuffle_rate=shuffle_rate,
            pruning=pruning,
            proj_drop_rate=proj_drop_rate,
            act_layer=act_layer,
            norm_layer=norm_layer,
        )
        kit = make_kit(act_layer, norm_layer, norm_eps, proj_drop_rate, device, dtype)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = embed_dim
        self.feature_stream = feature_stream
        if not 0.0 <= shuffle_rate <= 1.0:
            raise ValueError(f"shuffle_rate must be from 0 to 1, got {shuffle_rate}")
        self.num_extra_tokens, self.token_place = extra_tokens
        self.embedded_tokens = (
            self.num_extra_tokens if embed_extra_tokens else 0
        )  # those that pos_embed has entries for
        self.shuffle_rates = [shuffle_rate * i / max(depth - 1, 1) for i in range(depth)]

        self.patch_embed = patch_embed(in_chans, embed_dim, kit)
        self.img_size = to_2tuple(img_size)
        self.grid_size = self.patch_embed.grid_size(*self.img_size)
        count = self.num_extra_tokens
        self.cls_token = nn.Parameter(torch.empty(1, count, embed_dim, **kit.dd)) if count else None
        tokens = math.prod(self.grid_size) + self.embedded_tokens
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, embed_dim, **kit.dd))
        rates = calculate_drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.Sequential(*(block(Place(0, i, embed_dim, rates[i]), kit) for i in range(depth)))
        self.feature_info = [
            dict(num_chs=embed_dim, reduction=self.patch_embed.stride, module=f"blocks.{i}") for i in range(depth)
        ]
        self.norm = (final_norm or kit.norm_layer)(embed_dim, **kit.dd)
        self.check_pool(global_pool)
        self.global_pool = global_pool
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **kit.dd) if num_classes > 0 else nn.Identity()
        self.pruning = self.check_pruning(pruning, pruning_score)
        self.pruning_score, self.pruning_align = pruning_score, pruning_align
        if weight_init != "skip":
            self.init_weights(weight_init, needs_reset=False)

    def check_pruning(self, pruning: Sequence[tuple[int, float]], score: str) -> dict[int, float]:
        """Check when and how many tokens are left out; returns shares by block.

        Raises:
            ValueError: the model cannot prune, a block or a share is out of range, or the scan skips or repeats tokens.
        """
        if score not in ("clipped", "sum"):
            raise ValueError(f"pruning_score must be 'clipped' or 'sum', got {score!r}")
        if not pruning:
            return {}
        if not self.prunes_tokens:
            raise ValueError(
                f"{type(self).__name__} cannot prune tokens: its mixers read whole maps; leave out pruning"
            )
        if any(not isinstance(step, tuple | list) or len(step) != 2 for step in pruning):
            raise ValueError(f"pruning must be pairs (block, share of the patches that stays), got {pruning!r}")
        blocks = [int(block) for block, _ in pruning]
        depth = len(self.blocks)
        if any(not 0 <= block < depth for block in blocks) or blocks != sorted(set(blocks)):
            raise ValueError(f"blocks of pruning must grow, from 0 to {depth - 1}, got {blocks}")
        for _, share in pruning:
            if not 0.0 < share <= 1.0:
                raise ValueError(f"the share of patches that stays must be above 0 and at most 1, got {share}")
        if self.shuffle_rates[-1] > 0:
            raise ValueError("pruning and shuffle_rate do not go together: a shuffled block has no places")
        self.check_complete_scan()
        return {int(block): float(share) for block, share in pruning}

    def check_complete_scan(self) -> None:
        """Check that every route reads each token once, so that some of them can be left out.

        Raises:
            ValueError: a route skips or repeats tokens.
        """
        tokens = torch.arange(math.prod(self.grid_size) + self.num_extra_tokens)
        for mixer in {block.mixer.scan: block.mixer for block in self.blocks}.values():
            order = mixer.order(*self.grid_size, torch.device("cpu"))
            if order.shape[1] != len(tokens) or not torch.equal(order.long().sort(1).values, tokens.expand_as(order)):
                raise ValueError(f"tokens cannot be left out of scan {mixer.scan!r}, whose routes skip or repeat some")

    def check_pool(self, global_pool: str) -> None:
        """Check the name of a pooling.

        Raises:
            ValueError: the name is unknown, or asks for a class token that there is not.
        """
        known = ("", "avg", "max", "avgmax", *(() if self.cls_token is None else ("token",)))
        if global_pool not in known:
            raise ValueError(f"global_pool must be one of {', '.join(map(repr, known))}, got {global_pool!r}")

    def init_own_weights(self, mode: str) -> None:
        """Initialise the embeddings; a class adds what it does beside."""
        trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)

    def scale_out_proj(self) -> None:
        """Draw the mixers' last projections anew, smaller with depth, as Mamba does (arXiv:2312.00752, appendix E)."""
        for block in self.blocks:
            nn.init.kaiming_uniform_(block.mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():
                block.mixer.out_proj.weight /= math.sqrt(len(self.blocks))

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names per layer, for layer-wise learning rates."""
        return dict(
            stem=r"^cls_token|^pos_embed|^patch_embed",
            blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward instead of storing what they need."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, keeping device, dtype and mode; 0 classes remove it, a pool of "" pools nothing."""
        if global_pool is not None:
            self.check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        dd = get_device_dtype(self)
        head = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.head = head.train(self.training)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample the position embedding for good, for images of another size."""
        self.img_size = to_2tuple(img_size)
        grid = self.patch_embed.grid_size(*self.img_size)
        with torch.no_grad():
            pos_embed = self.resample_pos_embed(self.pos_embed, self.grid_size, grid)
        self.pos_embed = nn.Parameter(pos_embed, requires_grad=self.pos_embed.requires_grad)
        self.grid_size = grid
        update_model_input_size(self, self.img_size)

    def resample_pos_embed(self, pos_embed: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
        """Resample a position embedding (1, tokens, d) from one grid to another; extra tokens keep their entries."""
        return resample_pos_embed(pos_embed, grid, new_grid, self.embedded_tokens, self.token_place)

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample a checkpoint's position embedding of a square grid to the model's grid.

        Raises:
            CheckpointError: the position embedding is of no square grid.
        """
        pos_embed = state_dict.get("pos_embed")
        if ("cls_token" in state_dict) != (self.cls_token is not None):
            return state_dict  # the difference of names is reported
        if pos_embed is None or pos_embed.ndim != 3 or pos_embed.shape[2] != self.pos_embed.shape[2]:
            return state_dict
        patches = pos_embed.shape[1] - self.embedded_tokens
        side = math.isqrt(max(patches, 0))
        wanted = " x ".join(map(str, self.grid_size))
        if pos_embed.shape[1] == self.pos_embed.shape[1]:
            if side * side == patches and self.grid_size[0] != self.grid_size[1]:
                message = (
                    "the position embedding of the checkpoint is taken as one of %s patches; if it is one of %d x %d, "
                    "build the model for a square image, load, then call set_input_size"
                )
                _logger.warning(message, wanted, side, side)
            return state_dict
        if side * side != patches:
            token = " and a class token" if self.cls_token is not None else ""
            raise CheckpointError(
                f"the position embedding of the checkpoint has {pos_embed.shape[1]} entries, which is no square grid"
                f"{token}, so it cannot be resampled to the model's {wanted} patches; build the model with the "
                "img_size that the checkpoint was trained at, load, then call set_input_size"
            )
        message = "the position embedding of the checkpoint is resampled: %d x %d to %s patches"
        _logger.warning(message, side, side, wanted)
        return dict(state_dict, pos_embed=self.resample_pos_embed(pos_embed, (side, side), self.grid_size))

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Images (b, c, h, w) to the first state of the stream (b, L, d), and to the grid of their patches."""
        x = self.patch_embed(x)
        grid = Grid(x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        pos_embed = self.resample_pos_embed(self.pos_embed, self.grid_size, grid[:2])
        if self.embedded_tokens < self.num_extra_tokens:
            x = x + pos_embed
            pos_embed = None
        if self.cls_token is not None:
            x = insert_tokens(x, self.embed_extra(), self.num_extra_tokens, self.token_place)
        return (state_dtype(x) if pos_embed is None else state_dtype(x) + pos_embed), grid

    def embed_extra(self) -> Tensor:
        """The extra tokens (1, n, d) as they join the patches."""
        return self.cls_token

    def draw_order(self, block: int, length: int, device: torch.device) -> Tensor:
        """The order (length) in which a block sees its tokens in training: mostly as they are, see `shuffle_rate`."""
        plain = torch.arange(length, device=device)
        shuffled = torch.rand((), device=device) < self.shuffle_rates[block]
        return torch.where(shuffled, torch.randperm(length, device=device), plain)

    def run_block(
        self,
        index: int,
        x: Tensor,
        grid: Grid,
        with_hidden: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One block on the stream (b, L, d); with `with_hidden`, also what it adds to the stream."""
        block = self.blocks[index]
        kept = () if grid.kept is None else (grid.kept, grid.align)
        shuffle = self.training and self.shuffle_rates[-1] > 0
        if shuffle:
            order = self.draw_order(index, x.shape[1], x.device)
            x = x[:, order]
        if self.grad_checkpointing:
            out = checkpoint(block, x, grid.height, grid.width, with_hidden, *kept)
        else:
            out = block(x, grid.height, grid.width, with_hidden, *kept)
        if not shuffle:
            return out
        back = order.argsort()
        return (out[0][:, back], out[1][:, back]) if with_hidden else out[:, back]

    def run_pruning_block(self, index: int, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """A block after which tokens are left out.

        Returns:
            The stream after it and what it adds (b, L, d), and which of these tokens stay, int64 (b, L').
        """
        kept = () if grid.kept is None else (grid.kept, grid.align)
        run = self.blocks[index].forward_scored
        if self.grad_checkpointing:
            x, hidden, y = checkpoint(run, x, grid.height, grid.width, *kept)
        else:
            x, hidden, y = run(x, grid.height, grid.width, *kept)
        extra = self.num_extra_tokens
        count = kept_count(x.shape[1] - extra, self.pruning[index]) + extra
        score = token_scores(y, self.pruning_score == "clipped").masked_fill(self.is_extra(x, grid), math.inf)
        return x, hidden, best_tokens(score, count)

    def is_extra(self, x: Tensor, grid: Grid) -> Tensor:
        """Which tokens of a stream (b, L, d) are extra tokens, bool (b, L)."""
        positions = token_positions(grid.height * grid.width, self.num_extra_tokens, self.token_place)
        places = grid.kept if grid.kept is not None else torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        return (places.unsqueeze(-1) == torch.tensor(positions, device=x.device)).any(-1)

    def leave_out(self, x: Tensor, stay: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Only the tokens of a stream (b, L, d) that stay, int64 (b, L'), and a grid that knows them."""
        if stay.shape[1] == x.shape[1]:
            return x, grid
        kept = stay if grid.kept is None else grid.kept.gather(1, stay)
        return x.gather(1, stay.unsqueeze(-1).expand(-1, -1, x.shape[-1])), grid._replace(kept=kept)

    def in_usual_places(self, x: Tensor, grid: Grid) -> Tensor:
        """What is left of the tokens (b, L, d) with the extra tokens where they stand among so many patches."""
        count = self.num_extra_tokens
        if grid.kept is None or not count:
            return x
        order = self.is_extra(x, grid).long().argsort(dim=1, stable=True)
        x = x.gather(1, order.unsqueeze(-1).expand_as(x))
        return insert_tokens(x[:, :-count], x[:, -count:], count, self.token_place)

    def grid_after(self, index: int, grid: Grid) -> Grid:
        """The grid of the tokens that a block leaves, for a class some of whose blocks merge tokens."""
        return grid

    def finish(self, x: Tensor) -> Tensor:
        """The final norm, in the model's dtype."""
        return self.norm(x.to(self.pos_embed.dtype))

    def split_tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (b, L, d) to patch tokens (b, patches, d) and extra tokens (b, n, d)."""
        count = self.num_extra_tokens
        return remove_tokens(x, count, self.token_place), take_tokens(x, count, self.token_place)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | list[tuple[Tensor, Tensor]] | tuple[Tensor, list]:
        """Run the backbone and keep the stream after blocks.

        Args:
            x: Images (b, c, h, w).
            indices: The last n blocks if an integer, all if None, else these blocks.
            return_prefix_tokens: Return pairs of patch tokens and extra tokens (b, n, d).
            norm: Apply the final norm to every intermediate.
            stop_early: Stop after the last block needed.
            output_fmt: "NCHW" for maps, "NLC" for patch tokens.
            intermediates_only: Return the intermediates only.

        Returns:
            What `forward_features` returns, and the streams after the blocks (or what the blocks add to them, see
            `feature_stream`) without extra tokens; or the latter.

        Raises:
            ValueError: another output format.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        intermediates = []
        x, grid = self.embed(x)
        grid = grid._replace(align=self.pruning_align)
        whole = x
        for i in range(max_index + 1 if stop_early else len(self.blocks)):
            before, stay = grid, None
            if i in self.pruning:
                x, hidden, stay = self.run_pruning_block(i, x, grid)
            else:
                x, hidden = self.run_block(i, x, grid, with_hidden=True)
            grid = self.grid_after(i, grid)
            y = x if self.feature_stream else hidden
            if before.kept is not None:  # what was left out keeps its last value
                y = whole.scatter(1, before.kept.unsqueeze(-1).expand_as(y), y)
            whole = y
            if stay is not None:
                x, grid = self.leave_out(x, stay, grid)
            if i not in take_indices:
                continue
            y = self.finish(y) if norm else y.to(self.pos_embed.dtype)
            patches, extra = self.split_tokens(y)
            if output_fmt == "NCHW":
                patches = patches.unflatten(1, grid[:2]).permute(0, 3, 1, 2).contiguous()
            intermediates.append((patches, extra) if return_prefix_tokens else patches)
        if intermediates_only:
            return intermediates
        return self.in_usual_places(self.finish(x), grid), intermediates

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the blocks after the last one needed, and on request norm and head; returns the blocks kept."""
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: max_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
            if isinstance(getattr(self, "fc_norm", None), nn.Module):  # of what is pooled
                self.fc_norm = nn.Identity()
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) to the normalised tokens (b, L, d), with `pruning` only those that are left."""
        x, grid = self.embed(x)
        grid = grid._replace(align=self.pruning_align)
        for i in range(len(self.blocks)):
            if i in self.pruning:
                x, _, stay = self.run_pruning_block(i, x, grid)
                x, grid = self.leave_out(x, stay, grid)
                continue
            x = self.run_block(i, x, grid)
            grid = self.grid_after(i, grid)
        return self.in_usual_places(self.finish(x), grid)

    def pool(self, x: Tensor) -> Tensor:
        """Tokens (b, L, d) to (b, d): the class token, or the pooled patch tokens; unchanged for a pool of ""."""
        if self.global_pool == "token":
            return take_tokens(x, self.num_extra_tokens, self.token_place).flatten(1)
        if self.global_pool:
            x = remove_tokens(x, self.num_extra_tokens, self.token_place)
            return global_pool_nlc(x, self.global_pool, num_prefix_tokens=0)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; with `pre_logits`, only pool."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) of any size from a patch on to logits (b, num_classes)."""
        return self.forward_head(self.forward_features(x))
