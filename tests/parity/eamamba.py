"""EAMamba against the recorded runs of the original."""

from torch import Tensor, nn

from visionssm.checkpoints.layout import Layout
from visionssm.restoration import EAMambaSR, EAMambaUNet
from visionssm.restoration.eamamba import AllAroundScan

from . import Case

RECORDS = ("eamamba_*",)
_MERGES = {"concate": "concat", "add": "add"}


class Mixer(nn.Module):
    """The mixer on tokens, as recorded."""

    def __init__(self, size: tuple[int, int], **args):
        super().__init__()
        self.size = size
        self.mixer = AllAroundScan(**args)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.unflatten(1, self.size)).flatten(1, 2)


def build(case: Case) -> nn.Module:
    config = case.config or {}
    if "merge" in config:
        return Mixer(
            tuple(config["size"]),
            dim=config["dim"],
            d_state=config["d_state"],
            expand=config["expand"],
            scan=config["scan"],
            routes=config["count"],
            merge=_MERGES[config["merge"]],
        ).eval()
    if not config:  # a published variant
        _, kind, *scale = case.variant.split("_")
        return (EAMambaSR(int(scale[0][1:])) if kind == "sr" else EAMambaUNet()).eval()
    mamba = config["mamba_cfg"]
    if mamba["disable_z_branch"] or mamba["d_conv"] != 3 or not mamba["conv_2d"]:
        raise ValueError(f"no such mixer here: {mamba}")
    shared = dict(
        dim=config["dim"],
        depths=config["num_blocks"],
        mlp_ratio=config["ffn_expansion_factor"],
        d_state=mamba["d_state"],
        expand=mamba["expand"],
        scan=mamba["scan_type"],
        routes=mamba["scan_count"],
        merge=_MERGES[mamba["scan_merge_method"]],
    )
    if "num_refinement_blocks" in config:
        return EAMambaUNet(refinement=config["num_refinement_blocks"], **shared).eval()
    return EAMambaSR(config["upscale"], **shared).eval()


def convert(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    if not isinstance(model, Mixer):
        return model.checkpoint_filter_fn(state_dict, model)
    layout = Layout(own=r"^mixer\.", names=((r"^", "mixer."), *EAMambaSR.layout.names))
    return layout.convert(state_dict, {name: value.shape for name, value in model.state_dict().items()})


def outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for stage in case.record["stages"]:
        name = model.layout.rename(stage["name"] + ".").removesuffix(".")

        def keep(module, args, result, name=stage["name"]):
            out[name] = result.permute(0, 3, 1, 2)

        model.get_submodule(name).register_forward_hook(keep)
    out["output"] = model(x)
    return out
