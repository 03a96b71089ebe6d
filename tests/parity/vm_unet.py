"""VM-UNet against the recorded runs of the original."""

from torch import Tensor

from visionssm.segmentation import VMUNet

from . import Case

RECORDS = ("vmunet_*",)


def build(case: Case) -> VMUNet:
    config = case.config or {}
    stem = dict(case.keys)["patch_embed.proj.weight"]
    known = {name: config[name] for name in ("dims", "depths", "depths_decoder", "d_state", "heads") if name in config}
    heads = {name.split("scanhead_")[1][0] for name, _ in case.keys if "scanhead_" in name}
    if heads:
        known |= dict(mixer="mhs", heads=len(heads), threshold=config.get("t", 0.5))
    return VMUNet(num_classes=config.get("classes", 1), in_chans=stem[1], **known).eval()


def convert(state_dict: dict[str, Tensor], model: VMUNet) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: VMUNet, x: Tensor, case: Case) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, args, result: out.__setitem__(name, result.permute(0, 3, 1, 2))

    # the first record names stages by their last block, the second by the stage
    for recorded in case.record["stages"]:
        part, i = recorded["name"].split(".")[:2]
        stages = {"layers": model.encoder.stages, "layers_up": model.decoder.stages}[part]
        stages[int(i)].blocks.register_forward_hook(keep(recorded["name"]))
    out["output"] = model(x)
    return out
