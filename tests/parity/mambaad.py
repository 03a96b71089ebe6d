"""MambaAD's parts against the recorded runs of the original."""

from functools import partial

from torch import Tensor, nn

from visionssm.anomaly import LocalityEnhancedBlock, MambaADDecoder, MambaADFusion
from visionssm.anomaly.mambaad import BLOCK_NAMES, directions
from visionssm.checkpoints.layout import Layout
from visionssm.layers import SS2D

from . import Case

RECORDS = ("mambaad_mixer_*", "mambaad_lss", "mambaad_decoder_*", "mambaad_mff_*")
_BASES = dict(sweep="raster", scan="snake[0]", zorder="zorder", zigzag="zigzag[0]", hilbert="hilbert")
_norm = partial(nn.LayerNorm, eps=1e-5)


class Part(nn.Module):
    """A mixer or a block alone."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


def build(case: Case) -> nn.Module:
    config = case.config
    if config is None:
        return MambaADFusion().eval()
    base, count = _BASES[config["scan_type"]], config["num_direction"]
    if "dims_decoder" in config:
        sizes = (config["dims_decoder"], config["depths_decoder"], config.get("d_state", 16))
        return MambaADDecoder(*sizes, base, count).eval()
    scan = directions(base, count)
    if "depth" in config:
        norm = partial(nn.LayerNorm, eps=1e-6)
        block = LocalityEnhancedBlock(config["hidden_dim"], config["depth"], config["d_state"], scan, norm_layer=norm)
        return Part(block).eval()
    dim = config["d_model"]
    shared = dict(gated=True, conv_bias=True, norm_layer=_norm)
    return Part(SS2D(dim, 2 * dim, config["d_state"], -(-dim // 16), scan, **shared)).eval()


def convert(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    if not isinstance(model, Part):
        return model.checkpoint_filter_fn(state_dict, model)
    layout = Layout(own=r"^part\.", names=((r"^", "part."), *BLOCK_NAMES))
    return layout.convert(state_dict, {name: value.shape for name, value in model.state_dict().items()})


def outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, args, result: out.__setitem__(name, result.permute(0, 3, 1, 2))

    if not isinstance(model, MambaADDecoder):
        return {"output": model(x)}
    for i, stage in enumerate(model.stages):
        stage.register_forward_hook(keep(f"layers_up.{i}"))
    return out | {f"output{i}": y for i, y in enumerate(model(x))} | out
