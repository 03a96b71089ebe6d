"""Spatial-Mamba against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import timm
import torch
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.models.spatialmamba import SpatialMamba, StateFusion

from . import Case, Deviation, compare_operator, fill, reference_input, registered_names

RECORDS = ("spatialmamba_*",)
FAST = ("spatialmamba_tiny-damped",)


def build(case: Case) -> SpatialMamba:
    if case.variant in registered_names():
        return timm.create_model(registered_names()[case.variant]).eval()
    names = ("dims", "depths", "mlp_ratio", "num_classes", "drop_path_rate")
    return SpatialMamba(**{name: case.config[name] for name in names if name in case.config}).eval()


def convert(state_dict: dict[str, Tensor], model: SpatialMamba) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: SpatialMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    out["stem"] = model.stem(x).permute(0, 3, 1, 2)
    out["logits"] = model.forward_head(final)
    return out


def _fill(keys) -> dict[str, Tensor]:
    return {name: torch.from_numpy(fill(name, shape)) for name, shape in keys}


def _sasf(record: dict) -> Iterator[Deviation]:
    case = record["structure_aware_ssm"]
    model = SpatialMamba(dims=(case["config"]["d_model"],), depths=(1,))
    mixer = model.stages[0].blocks[0].mixer
    prefix = "stages.0.blocks.0.mixer."
    shapes = {prefix + k: v.shape for k, v in mixer.state_dict().items()}
    source = {f"layers.0.blocks.0.self_attention.{k}": v for k, v in _fill(case["keys"]).items()}
    converted = model.layout.convert(source, shapes)
    mixer.load_state_dict({k.removeprefix(prefix): v for k, v in converted.items()}, strict=True)
    x = torch.from_numpy(reference_input(case["input_shape_bhwc"], case["input_seed"]))
    with torch.no_grad():
        y = mixer(x)
    yield compare_operator("mixer", y, np.array(case["output_bhwc"]).reshape(y.shape))
    case = record["state_fusion"]
    fusion, weights = StateFusion(case["dim"]), _fill(case["keys"])
    fusion.weight.data = torch.stack([weights[f"kernel_3{end}"] for end in ("", "_1", "_2")])
    fusion.alpha.data = weights["alpha"]
    x = torch.from_numpy(reference_input(case["input_shape"], case["input_seed"]))
    with torch.no_grad():
        y = fusion(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    yield compare_operator("state fusion", y, np.array(case["output"]).reshape(y.shape))


OPERATORS = {"spatialmamba-sasf": _sasf}
