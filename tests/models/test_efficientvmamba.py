"""EfficientVMamba: what is its own."""

import json
from pathlib import Path

import timm
import torch

import visionssm  # noqa: F401
from visionssm.models.efficientvmamba import EVSSBlock, InvertedResidual

DATA = Path(__file__).resolve().parent.parent / "data"


def test_the_last_stages_do_not_scan():
    model = timm.create_model("efficientvmamba_tiny", device="meta")
    kinds = [{type(block) for block in stage.blocks} for stage in model.stages]
    assert kinds == [{EVSSBlock}, {EVSSBlock}, {InvertedResidual}, {InvertedResidual}]


def test_files_of_a_wrapped_average_and_of_the_earliest_names():
    model = timm.create_model("efficientvmamba_tiny", device="meta")
    keys = json.loads((DATA / "keys" / "efficientvmamba_tiny.json").read_text())["keys"]
    source = {name: torch.empty(shape, device="meta") for name, shape in keys}
    early = {
        name.replace("patch_embed.0.", "patch_embed.proj.")
        .replace("patch_embed.2.", "patch_embed.norm.")
        .replace("classifier.", "")
        .replace(".op.", ".self_attention."): value
        for name, value in source.items()
    }
    wrapped = {f"module.module.{name}": value for name, value in source.items()}
    zeros = {name: torch.zeros(1, device="meta") for name in source}  # would not fit
    for file in (early, {"state_dict": wrapped}, {"model": zeros, "ema_model": wrapped, "epoch": 3}):
        assert set(model.checkpoint_filter_fn(file, model)) == set(model.state_dict())
