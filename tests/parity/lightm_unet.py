"""LightM-UNet against the recorded runs of the original."""

from torch import Tensor

from visionssm.segmentation import LightMUNet

from . import Case

RECORDS = ("lightmunet_*",)


def build(case: Case) -> LightMUNet:
    config = case.config or {}
    return LightMUNet(
        config["out_channels"],
        config["in_channels"],
        config["init_filters"],
        config["blocks_down"],
        config["blocks_up"],
        config["spatial_dims"],
    ).eval()


def convert(state_dict: dict[str, Tensor], model: LightMUNet) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: LightMUNet, x: Tensor, case: Case) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, args, result: out.__setitem__(name, result)

    for part, stages in (("down_layers", model.encoder), ("up_layers", model.decoder)):
        for i, stage in enumerate(stages):
            stage.register_forward_hook(keep(f"{part}.{i}"))
    out["output"] = model(x)
    return out
