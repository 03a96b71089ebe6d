"""MambaIRv2 against the recorded runs of the original, whose routing was recorded without noise."""

from torch import Tensor

from visionssm.restoration import MambaIRv2

from . import Case
from .mambair import outputs

__all__ = ["RECORDS", "build", "convert", "outputs"]

RECORDS = ("mambairv2_*",)


def build(case: Case) -> MambaIRv2:
    config = case.config or {}
    return MambaIRv2(
        config["upscale"],
        config["in_chans"],
        config["embed_dim"],
        config["depths"],
        config["num_heads"],
        config["window_size"],
        config["d_state"],
        config["inner_rank"],
        config["num_tokens"],
        config["mlp_ratio"],
        config["convffn_kernel_size"],
        config["upsampler"],
        config["light"],
        config["resi_connection"],
        config["img_range"],
    ).eval()


def convert(state_dict: dict[str, Tensor], model: MambaIRv2) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)
