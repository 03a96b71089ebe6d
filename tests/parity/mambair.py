"""MambaIR and its U-Net against the recorded runs of the original."""

from torch import Tensor

from visionssm.restoration import MambaIR, MambaIRUNet

from . import Case

RECORDS = ("mambair_*",)


def build(case: Case) -> MambaIR | MambaIRUNet:
    config = case.config or {}
    if "inp_channels" in config:
        return MambaIRUNet(
            config["inp_channels"],
            config["out_channels"],
            config["dim"],
            config["num_blocks"],
            config["num_refinement_blocks"],
            ratio=config["mlp_ratio"],
            dual_pixel=config["dual_pixel_task"],
        ).eval()
    return MambaIR(
        config["upscale"],
        config["in_chans"],
        config["embed_dim"],
        config["depths"],
        config["d_state"],
        config["mlp_ratio"],
        config["upsampler"],
        config["resi_connection"],
        config["img_range"],
    ).eval()


def convert(state_dict: dict[str, Tensor], model: MambaIR | MambaIRUNet) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: MambaIR | MambaIRUNet, x: Tensor, case: Case) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for stage in case.record["stages"]:
        name = model.layout.rename(stage["name"] + ".").removesuffix(".")

        def keep(module, args, result, name=stage["name"]):
            out[name] = result.permute(0, 3, 1, 2)

        model.get_submodule(name).register_forward_hook(keep)
    out["output"] = model(x)
    return out
