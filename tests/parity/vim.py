"""Vim against the recorded runs of the original."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.layers import BidirectionalMixer, resample_pos_embed, take_tokens
from visionssm.models._builder import VisionModel
from visionssm.models.vim import Vim
from visionssm.ops import causal_conv1d

from . import Case, Deviation, compare_operator, create, fill, fill_state_dict, reference_input

RECORDS = ("vim_*",)
FAST = ("vim_tiny",)


def model_args(config: dict) -> dict:
    """Arguments of our model for those of the original's constructor."""
    return dict(
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        stride=config["stride"],
        in_chans=config["channels"],
        num_classes=config["num_classes"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        d_state=config["d_state"],
        average=config["if_divide_out"],
        drop_path_rate=config["drop_path_rate"],
        norm_layer="rmsnorm" if config["rms_norm"] else "layernorm",
    )


def build(case: Case) -> Vim:
    if case.full_size:
        return create(case)
    return Vim(**model_args(case.config)).eval()


def convert(state_dict: dict[str, Tensor], model: Vim) -> dict[str, Tensor]:
    return VisionModel.checkpoint_filter_fn(state_dict, model)


def outputs(model: Vim, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, streams = model.forward_intermediates(x, return_prefix_tokens=True)
    out = {"patch_embed": model.patch_embed(x).permute(0, 3, 1, 2), "norm_f.cls": take_tokens(final)[:, 0]}
    for i, (patches, token) in enumerate(streams):
        out[f"layers.{i}"] = patches
        out[f"layers.{i}.cls"] = token[:, 0]
    out["logits"] = model.forward_head(final)
    return out


def _mixer(record: dict) -> Iterator[Deviation]:
    source = fill_state_dict([(f"layers.0.mixer.{name}", tuple(shape)) for name, shape in record["keys"]])
    source = {
        name: torch.from_numpy(fill(name.removeprefix("layers.0.mixer."), tuple(value.shape)))
        for name, value in source.items()
    }
    mixer = BidirectionalMixer(24, "bidirectional", extra_tokens=(1, "middle"), average=True)
    prefix = "blocks.0.mixer."
    model = Vim(img_size=16, embed_dim=24, depth=1, num_classes=0)
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith(prefix)}
    weights = VisionModel.checkpoint_filter_fn({**source, **rest}, model)
    mixer.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, strict=True)
    x = torch.from_numpy(reference_input((2, 19, 24), seed=3))
    with torch.no_grad():
        yield compare_operator("output", mixer(x, 1, 18), _shaped(record, "output"))
        u, z = mixer.in_proj(x).chunk(2, dim=-1)
        order = mixer.order(1, 18, x.device)
        u = F.silu(causal_conv1d(u, mixer.conv_weight, mixer.conv_bias, order))
        routes = mixer.ssm(u, order, num_tokens=19, by_step=True, out="step")
    for i, (name, gate) in enumerate((("forward_branch", z), ("backward_branch_in_flipped_order", z.flip(1)))):
        yield compare_operator(name, (routes[:, :, i] * F.silu(gate)).permute(0, 2, 1), _shaped(record, name))


def _shaped(record: dict, name: str):
    shape = record.get(f"{name}_shape", record.get("forward_branch_shape"))
    return torch.tensor(record[name], dtype=torch.float64).view(shape).numpy()


def _pos_embed(record: dict) -> Iterator[Deviation]:
    table = torch.from_numpy(fill("pos_embed", (1, 17, 8)))
    ours = resample_pos_embed(table, (4, 4), (6, 6), count=1)
    yield compare_operator("middle entry kept", ours, torch.tensor(record["corrected"]).view(record["shape"]).numpy())
    # the original takes entry 0 for the class token's; its stride-8 models were initialised so
    original = torch.cat([table[:, :1], resample_pos_embed(table[:, 1:], (4, 4), (6, 6), count=0)], 1)
    yield compare_operator(
        "first entry kept, as the original", original, torch.tensor(record["original"]).view(record["shape"]).numpy()
    )


OPERATORS = {
    "vim-bimamba_v2": _mixer,
    "vim-pos_embed_resize": _pos_embed,
}
