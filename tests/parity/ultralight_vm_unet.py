"""UltraLight VM-UNet against the recorded runs of the original."""

from torch import Tensor

from visionssm.segmentation import UltraLightVMUNet

from . import Case

RECORDS = ("ultralight_*",)


def build(case: Case) -> UltraLightVMUNet:
    config = case.config or {}
    return UltraLightVMUNet(
        config.get("num_classes", 1),
        config.get("input_channels", 3),
        config.get("c_list", (8, 16, 24, 32, 48, 64)),
        config.get("bridge", True),
    ).eval()


def convert(state_dict: dict[str, Tensor], model: UltraLightVMUNet) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: UltraLightVMUNet, x: Tensor, case: Case) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, args, result: out.__setitem__(name, result)

    for part, layers in (("encoder", model.encoder), ("decoder", model.decoder)):
        for i, layer in enumerate(layers, start=1):
            layer.register_forward_hook(keep(f"{part}{i}"))
    out["output"] = model(x)
    return out
