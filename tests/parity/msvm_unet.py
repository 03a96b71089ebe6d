"""MSVM-UNet against the recorded runs of the original."""

import re

from torch import Tensor, nn

from visionssm.segmentation import MSVMUNet
from visionssm.segmentation.msvm_unet import LargeKernelPatchExpand, MultiScaleMlp

from . import Case

RECORDS = ("msvmunet_*",)


class ChannelsFirst(nn.Module):
    """A block of the decoder with maps (b, c, h, w), in and out."""

    def __init__(self, mlp: nn.Module | None = None, up: nn.Module | None = None, head: nn.Module | None = None):
        super().__init__()
        self.mlp, self.up, self.head = mlp, up, head

    def forward(self, x: Tensor) -> Tensor:
        if self.mlp is not None:
            return self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.up(x).permute(0, 3, 1, 2)
        return y if self.head is None else self.head(y)


def build(case: Case) -> nn.Module:
    shapes = dict(case.keys)
    if "fc1.weight" in shapes:
        hidden, dim = shapes["fc1.weight"]
        return ChannelsFirst(mlp=MultiScaleMlp(dim, hidden // dim)).eval()
    if "expand.0.weight" in shapes:
        dim_out, dim = shapes["norm.weight"][0], shapes["expand.0.weight"][1]
        scale = round((shapes["expand.0.weight"][0] // dim_out) ** 0.5)
        head = nn.Conv2d(dim_out, shapes["out.weight"][0], 1) if "out.weight" in shapes else None
        return ChannelsFirst(up=LargeKernelPatchExpand(dim, dim_out, scale), head=head).eval()
    config = case.config
    if "dims" not in config:  # a published variant
        encoder = {"msvmunet_tiny": "vmamba_tiny_s1l8", "msvmunet_small": "vmamba_small_s1l20"}[case.variant]
        return MSVMUNet(config["num_classes"], encoder=encoder).eval()
    encoder = dict(dims=config["dims"], depths=config["depths"])
    return MSVMUNet(config["classes"], encoder="vmamba_tiny_s1l8", encoder_args=encoder).eval()


def convert(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, MSVMUNet):
        return model.checkpoint_filter_fn(state_dict, model)
    names = {
        "out.": "head.",
        "multiscale_conv.dw_convs.": "mlp.convs.",
        "fc": "mlp.fc",
        "expand.0.": "up.widen.",
        "expand.1.": "up.bn.",
        "expand.3.": "up.conv.",
        "norm.": "up.norm.",
    }
    pattern = "^(" + "|".join(map(re.escape, names)) + ")"
    ours = model.state_dict()
    renamed = {re.sub(pattern, lambda match: names[match[1]], name): value for name, value in state_dict.items()}
    return {name: value.reshape(ours[name].shape) for name, value in renamed.items()}


def outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    if isinstance(model, MSVMUNet):
        model.encoder.register_forward_hook(
            lambda module, args, maps: out.update({f"encoder.layers.{i}": y for i, y in enumerate(maps)})
        )

        def keep(name: str, channels_last: bool):
            return lambda module, args, y: out.__setitem__(name, y.permute(0, 3, 1, 2) if channels_last else y)

        for i, stage in enumerate(model.decoder.stages):
            stage.register_forward_hook(keep(f"decoder.layers.{i}", False))
            stage.up.register_forward_hook(keep(f"decoder.layers.{i}.up", True))
    out["output"] = model(x)
    return out
