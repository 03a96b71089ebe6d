"""Mamba-Reg against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.layers import insert_tokens, take_tokens
from visionssm.models.mambareg import MambaReg
from visionssm.scans import token_positions

from . import Case, Deviation, compare_operator, create

RECORDS = ("mambareg_*",)
FAST = ("mambareg_tiny",)


def model_args(config: dict) -> dict:
    """Arguments of our model for those of the original's constructor."""
    return dict(
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        num_classes=config["num_classes"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        drop_path_rate=config["drop_path_rate"],
        norm_layer="rmsnorm" if config["rms_norm"] else "layernorm",
        num_registers=config["num_cls_tokens"],
        reduction=config["cls_reduce"],
    )


def build(case: Case) -> MambaReg:
    if case.full_size:
        return create(case)
    return MambaReg(**model_args(case.config)).eval()


def convert(state_dict: dict[str, Tensor], model: MambaReg) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: MambaReg, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, streams = model.forward_intermediates(x, return_prefix_tokens=True)
    registers = take_tokens(final, model.num_extra_tokens, "even")
    out = {"patch_embed": model.patch_embed(x).permute(0, 3, 1, 2), "norm_f.registers": registers}
    for i, (patches, tokens) in enumerate(streams):
        out[f"layers.{i}"] = patches
        out[f"layers.{i}.registers"] = tokens
    if "register_positions" in case.record:
        extra, tokens = model.num_extra_tokens, torch.arange(final.shape[1]).view(1, -1, 1)
        assert token_positions(tokens.numel() - extra, extra, "even") == case.record["register_positions"]
        order = insert_tokens(tokens[:, :-extra], tokens[:, -extra:], extra, "even")
        assert order.flatten().tolist() == case.record["token_idx"]
    out["features"] = model.forward_head(final, pre_logits=True)
    out["logits"] = model.forward_head(final)
    return out


def _registers(record: dict) -> Iterator[Deviation]:
    for name, grid in record["grids"].items():
        size, count = name.split("-")
        height, width = map(int, size.split("x"))
        positions = token_positions(height * width, int(count), "even")
        yield compare_operator(name, torch.tensor(positions), np.array(grid["positions"]), 0.0)


OPERATORS = {"mambareg-registers": _registers}
