"""SegMamba, and the mixer that it shares with Vivim, against the recorded runs of the originals."""

from torch import Tensor, nn

from visionssm.checkpoints import Layout
from visionssm.layers import MambaMixer
from visionssm.segmentation import SegMamba
from visionssm.segmentation.segmamba import SCAN, TRI_ROUTES

from . import Case

RECORDS = ("segmamba_*", "trimamba_*")
# a convolution's bias in front of an instance norm has no gradient but for rounding, up to 1e-4 of the largest
GRADIENT_FLOOR = 1e-3
_MIXER = Layout(own="^conv_weight$", stack=TRI_ROUTES)


class OnTable(nn.Module):
    """The mixer on tokens of `slices` equal slices."""

    def __init__(self, dim: int, d_state: int, slices: int, average: bool):
        super().__init__()
        self.slices = slices
        self.mixer = MambaMixer(dim, SCAN, d_state, average=average)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x, self.slices, x.shape[1] // self.slices)


def build(case: Case) -> nn.Module:
    config = case.config
    if case.name.startswith("trimamba"):
        return OnTable(config["d_model"], config["d_state"], config["slices"], config["merge"] == "mean").eval()
    return SegMamba(
        config["out_chans"],
        config["in_chans"],
        config["feat_size"],
        config["depths"],
        config["hidden_size"],
        slices=(64, 32, 16, 8),
    ).eval()


def convert(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, SegMamba):
        return model.checkpoint_filter_fn(state_dict, model)
    shapes = {name: value.shape for name, value in model.mixer.state_dict().items()}
    return {f"mixer.{name}": value for name, value in _MIXER.convert(state_dict, shapes).items()}


def outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, args, result: out.__setitem__(name, result)

    if isinstance(model, SegMamba):
        for i, stage in enumerate(model.stages):
            stage.blocks.register_forward_hook(keep(f"vit.stages.{i}"))
        for i, block in enumerate(model.encoder, start=1):
            block.register_forward_hook(keep(f"encoder{i}"))
        for i, up in enumerate(model.decoder):
            up.register_forward_hook(keep(f"decoder{5 - i}"))
        model.last.register_forward_hook(keep("decoder1"))
    out["output"] = model(x)
    return out
