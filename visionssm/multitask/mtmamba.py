"""MTMamba and MTMamba++: decoders that exchange features among dense tasks by selective scans.

Papers: MTMamba: Enhancing Multi-Task Dense Scene Understanding by Mamba-Based Decoders,
https://arxiv.org/abs/2407.02228; MTMamba++, https://arxiv.org/abs/2408.15101
Original code: https://github.com/EnVision-Research/MTMamba (no licence; written from a description of it)
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import SS2D, SS2D_NAMES, MapConv2d, PatchExpand, ResidualBlock, SelectiveSSM, split_linear, state_dtype
from ..models._builder import VisionModel
from ..ops import selective_scan
from ..scans import num_routes, scan_table

__all__ = ["MTMambaDecoder"]

TASKS = ("semseg", "depth", "human_parts", "sal", "normals", "edge")  # in the order that fixes the weights
_norm = partial(LayerNorm, eps=1e-5)


class ScanUnit(nn.Module):
    """Projection, depthwise convolution, scan, norm: a gated mixer without its gate and output projection."""

    def __init__(self, dim_in: int, dim: int, d_state: int, scan: str):
        super().__init__()
        self.scan = scan
        self.in_proj = nn.Linear(dim_in, 2 * dim, bias=False)
        self.conv = MapConv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim)
        self.act = nn.SiLU()
        self.ssm = SelectiveSSM(2 * dim, num_routes(scan), d_state, math.ceil(dim / 16))
        self.out_norm = _norm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim_in) to (b, h, w, 2 dim)."""
        height, width = x.shape[1:3]
        x = self.act(self.conv(self.in_proj(x))).flatten(1, 2)
        x = self.ssm(x, scan_table(self.scan, height, width, x.device))
        return self.out_norm(x.unflatten(1, (height, width)))


class FeatureExchange(nn.Module):
    """Per task, a gate mixes the task's own scan with that of all tasks (MTMamba's cross-task block)."""

    def __init__(self, tasks: Sequence[str], dim: int, d_state: int, scan: str, drop_path: float):
        super().__init__()
        self.norm_share = _norm(len(tasks) * dim)
        self.share = ScanUnit(len(tasks) * dim, dim, d_state, scan)
        self.norm = nn.ModuleDict({task: _norm(dim) for task in tasks})
        self.own = nn.ModuleDict({task: ScanUnit(dim, dim, d_state, scan) for task in tasks})
        self.gate = nn.ModuleDict({task: nn.Linear(dim, 2 * dim, bias=False) for task in tasks})
        self.out_proj = nn.ModuleDict({task: nn.Linear(2 * dim, dim, bias=False) for task in tasks})
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps (b, h, w, dim) of all tasks to maps of the same shape."""
        shared = self.share(self.norm_share(torch.cat(list(maps.values()), -1)))
        out = {}
        for task, x in maps.items():
            z = self.norm[task](x)
            gate = torch.sigmoid(self.gate[task](z))
            mixed = gate * shared + (1 - gate) * self.own[task](z)
            out[task] = x + self.drop_path(self.out_proj[task](mixed))
        return out


class SourcedSSM(SelectiveSSM):
    """A scan whose step size, B and C are projected from other tokens than those it scans."""

    def forward(self, u: Tensor, source: Tensor, order: Tensor) -> Tensor:  # type: ignore[override]
        """Scan tokens u (b, L, d) by what `source` (b, L, d) says, along `order` (k, T); returns (b, L, d)."""
        projected = F.linear(source, self.x_proj_weight.flatten(0, 1)).unflatten(-1, (self.routes, sum(self.splits)))
        delta, b, c = projected.split(self.splits, dim=-1)
        return selective_scan(
            u,
            delta,
            -torch.exp(state_dtype(self.A_log)),
            b,
            c,
            state_dtype(self.D),
            state_dtype(self.dt_bias),
            dt_weight=self.dt_weight,
            order=order,
            out="sum",
            out_dtype=self.D.dtype,
        )


class CrossScan(nn.Module):
    """A gated mixer whose scan is steered by a second map."""

    def __init__(self, dim: int, d_state: int, scan: str):
        super().__init__()
        self.scan = scan
        self.in_proj = nn.Linear(dim, 4 * dim, bias=False)
        self.in_proj_cross = nn.Linear(dim, 2 * dim, bias=False)
        self.conv = MapConv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim)
        self.act = nn.SiLU()
        self.ssm = SourcedSSM(2 * dim, num_routes(scan), d_state, math.ceil(dim / 16))
        self.out_norm = _norm(2 * dim)
        self.out_proj = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Two maps (b, h, w, dim) to one."""
        height, width = x.shape[1:3]
        x, z = split_linear(self.in_proj, x)
        x = self.act(self.conv(x)).flatten(1, 2)
        order = scan_table(self.scan, height, width, x.device)
        x = self.ssm(x, self.in_proj_cross(source).flatten(1, 2), order)
        return self.out_proj(self.out_norm(x.unflatten(1, (height, width))) * self.act(z))


class StateExchange(nn.Module):
    """Per task, a scan steered by the features of all tasks (MTMamba++'s cross-task block)."""

    def __init__(self, tasks: Sequence[str], dim: int, d_state: int, scan: str, drop_path: float):
        super().__init__()
        self.norm_share = _norm(len(tasks) * dim)
        self.conv_share = nn.Sequential(MapConv2d(len(tasks) * dim, dim, 1), MapConv2d(dim, dim, 3, padding=1))
        self.norm = nn.ModuleDict({task: _norm(dim) for task in tasks})
        self.mixer = nn.ModuleDict({task: CrossScan(dim, d_state, scan) for task in tasks})
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps (b, h, w, dim) of all tasks to maps of the same shape."""
        shared = self.conv_share(self.norm_share(torch.cat(list(maps.values()), -1)))
        return {task: x + self.drop_path(self.mixer[task](self.norm[task](x), shared)) for task, x in maps.items()}


class TaskStage(nn.Module):
    """What one task does in one stage: enlarge its map, join the backbone's, two blocks."""

    def __init__(self, dim: int, d_state: int, scan: str, drop_path: Sequence[float]):
        super().__init__()
        self.expand = PatchExpand(2 * dim, dim, norm_layer=_norm)
        self.concat = nn.Linear(2 * dim, dim)
        rank = math.ceil(dim / 16)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(
                    _norm(dim),
                    SS2D(dim, 2 * dim, d_state, rank, scan, gated=True, conv_bias=True, norm_layer=_norm),
                    drop_path=rate,
                )
                for rate in drop_path
            )
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """A map (b, h, w, 2 dim) and one (b, 2 h, 2 w, dim) to (b, 2 h, 2 w, dim)."""
        return self.blocks(self.concat(torch.cat([self.expand(x), skip], -1)))


class MTMambaDecoder(VisionModel):
    """The decoder of MTMamba (arXiv:2407.02228) or MTMamba++ (arXiv:2408.15101).

    Args:
        channels: Channels of the backbone's maps, finest first, each twice the one before.
        tasks: Output channels by task. Tasks are put in the order in which published files join them: semseg, depth,
            human_parts, sal, normals, edge, then others as given.
        version: 1 for MTMamba, 2 for MTMamba++.
        d_state: States per channel of the scans.
        scan: Name of the scan order.
        drop_path_rate: Stochastic depth of the first block; falls linearly to 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^stages\.",
        tell_tale=(r"^(module\.)?expand_layers\.\w+_\d+\.expand\.", r"^(module\.)?(block_3|block_ctm)\.\d+\."),
        drop=r"^backbone\.",  # a file of a whole model holds mmseg's Swin too
        names=(
            (r"^expand_layers\.(\w+)_(\d+)\.", r"stages.\2.\1.expand."),
            (r"^concat_layers\.(\w+)_(\d+)\.", r"stages.\2.\1.concat."),
            (r"^block_1\.(\w+)_(\d+)\.", r"stages.\2.\1.blocks.0."),
            (r"^block_2\.(\w+)_(\d+)\.", r"stages.\2.\1.blocks.1."),
            (r"^block_stm\.(\w+)_(\d+)\.", r"stages.\2.\1.blocks."),
            (r"(\.blocks\.\d)\.norm\.", r"\1.norm1."),
            (r"(\.blocks\.\d)\.op\.", r"\1.mixer."),
            (r"^block_3\.(\d+)\.in_proj\.", r"exchanges.\1.gate."),
            (r"^block_3\.(\d+)\.op_share\.", r"exchanges.\1.share."),
            (r"^block_3\.(\d+)\.op\.", r"exchanges.\1.own."),
            (r"^block_3\.", "exchanges."),
            (r"^block_ctm\.(\d+)\.0\.op\.", r"exchanges.\1.mixer."),
            (r"^block_ctm\.(\d+)\.0\.", r"exchanges.\1."),
            (r"^final_expand\.(\w+)\.(expand|norm)\.", r"heads.\1.expand.\2."),
            (r"^final_expand\.(\w+)\.(\d)\.", r"heads.\1.\2."),
            (r"^final_project\.(\w+)\.", r"heads.\1.project."),
            *SS2D_NAMES,
        ),
    )

    def __init__(
        self,
        channels: Sequence[int],
        tasks: Mapping[str, int],
        version: int = 1,
        d_state: int = 16,
        scan: str = "cross",
        drop_path_rate: float = 0.2,
    ):
        super().__init__()
        channels = list(channels)
        if len(channels) < 2 or any(coarse != 2 * fine for fine, coarse in zip(channels, channels[1:], strict=False)):
            raise ValueError(
                f"channels must be those of 2 maps or more, each twice the one before, got {channels}; put 1x1 "
                "convolutions in front of the decoder"
            )
        if not tasks or any("." in task or count < 1 for task, count in tasks.items()):
            raise ValueError(f"tasks must name output channels by task, names without dots, got {dict(tasks)}")
        if version not in (1, 2):
            raise ValueError(f"version must be 1 (MTMamba) or 2 (MTMamba++), got {version}")
        order = [task for task in TASKS if task in tasks] + [task for task in tasks if task not in TASKS]
        self.tasks = {task: tasks[task] for task in order}
        self.channels = channels
        dims = channels[-2::-1]
        rates = torch.linspace(drop_path_rate, 0, 3 * len(dims), device="cpu").view(-1, 3).tolist()
        self.stages = nn.ModuleList(
            nn.ModuleDict({task: TaskStage(dim, d_state, scan, rate[:2]) for task in order})
            for dim, rate in zip(dims, rates, strict=True)
        )
        exchange = FeatureExchange if version == 1 else StateExchange
        self.exchanges = nn.ModuleList(
            exchange(order, dim, d_state, scan, rate[2]) for dim, rate in zip(dims, rates, strict=True)
        )
        head = _expanding_head if version == 1 else _conv_head
        self.heads = nn.ModuleDict({task: head(channels[0], count) for task, count in self.tasks.items()})
        self.init_weights(needs_reset=False)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Decode.

        Args:
            maps: (b, channels[i], h_i, w_i), finest first, halving.
            size: Height and width of the outputs; four times those of the finest map if None.

        Returns:
            Outputs (b, channels of the task, *size) by task: logits, or raw values.

        Raises:
            ValueError: another number of maps or of channels, or sides that do not halve.
        """
        self._check(maps)
        skips = [m.permute(0, 2, 3, 1) for m in reversed(maps)]
        y = dict.fromkeys(self.tasks, skips[0])
        for stage, exchange, skip in zip(self.stages, self.exchanges, skips[1:], strict=True):
            y = exchange({task: stage[task](x, skip) for task, x in y.items()})
        size = tuple(size) if size is not None else tuple(4 * side for side in maps[0].shape[2:])
        return {
            task: F.interpolate(self.heads[task](x).permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)
            for task, x in y.items()
        }

    def _check(self, maps: Sequence[Tensor]) -> None:
        found = [m.shape[1] for m in maps]
        if found != self.channels:
            raise ValueError(f"the decoder was built for maps of {self.channels} channels, finest first, got {found}")
        for fine, coarse in zip(maps, maps[1:], strict=False):
            if tuple(fine.shape[2:]) != tuple(2 * side for side in coarse.shape[2:]):
                sizes = [tuple(m.shape[2:]) for m in maps]
                raise ValueError(f"sides must halve from map to map, got {sizes}; take images of sides that divide")


def _expanding_head(dim: int, count: int) -> nn.Sequential:
    head = nn.Sequential()
    head.add_module("expand", PatchExpand(dim, dim, 4, _norm))
    head.add_module("project", MapConv2d(dim, count, 1))
    return head


class _MapBatchNorm(nn.SyncBatchNorm):
    """Batch norm of maps (b, h, w, c); over all processes where there are several."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _conv_head(dim: int, count: int) -> nn.Sequential:
    head = nn.Sequential(MapConv2d(dim, 96, 3, padding=1), _MapBatchNorm(96), nn.ReLU())
    head.add_module("project", MapConv2d(96, count, 1))
    return head
