"""U-Mamba against the recorded runs of the original."""

import torch
from torch import Tensor

from visionssm.segmentation import UMamba

from . import Case

RECORDS = ("umamba_*",)
# a convolution's bias in front of an instance norm has no gradient but for rounding, up to 1e-4 of the largest
GRADIENT_FLOOR = 1e-3
# float32 errs by up to 1e-4 behind instance norms over a few pixels; where that turns the sign of one leaky unit, the
# gradients behind it change by 4e-3 of the largest (in umamba_bot_custom_b and umamba_enc_custom_b one unit each)
DTYPE = torch.float64
# float32, as recorded, is up to 0.9e-4 of the spread off itself: norms over a few pixels behind a layer without a skip
TOLERANCE = 2e-4


def build(case: Case) -> UMamba:
    config = case.config
    return UMamba(
        config["classes"],
        config["in_channels"],
        config["kind"],
        config["features"],
        config["strides"],
        blocks=config.get("blocks", 2),
        blocks_decoder=config.get("blocks_decoder", 2),
        spatial_dims=len(config["strides"][0]),
        input_size=config.get("input_size"),
        deep_supervision=config.get("deep_supervision", False),
    ).eval()


def convert(state_dict: dict[str, Tensor], model: UMamba) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: UMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, args, result: out.__setitem__(name, result)

    model.stem.register_forward_hook(keep("encoder.stem"))
    if model.kind == "bot":
        model.mamba_layer.register_forward_hook(keep("mamba_layer"))
    for part, modules in (
        ("encoder.stages", model.stages),
        ("encoder.mamba_layers", model.mixers),
        ("decoder.stages", model.decoder),
    ):
        for i, module in enumerate(modules):
            module.register_forward_hook(keep(f"{part}.{i}"))
    if model.deep_supervision:
        out |= {f"output{i}": y for i, y in enumerate(model.forward_all(x))}
    else:
        out["output"] = model(x)
    return out
