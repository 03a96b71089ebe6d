"""MambaVision against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import timm
import torch
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.models.mambavision import MambaVision

from . import Case, Deviation, compare_operator, fill, reference_input, registered_names

RECORDS = ("mambavision_*",)
FAST = ("mambavision_t",)
_NAMES = {"dim": "dims", "in_dim": "stem_dim", "drop_rate": "proj_drop_rate"}
_SAME = (
    "depths",
    "num_heads",
    "window_size",
    "mlp_ratio",
    "qkv_bias",
    "attn_drop_rate",
    "layer_scale",
    "drop_path_rate",
    "in_chans",
    "num_classes",
)


def build(case: Case) -> MambaVision:
    if case.variant in registered_names():
        return timm.create_model(registered_names()[case.variant]).eval()
    args = {_NAMES.get(k, k): v for k, v in case.config.items() if k in _NAMES or k in _SAME}
    if unknown := {k: v for k, v in case.config.items() if _NAMES.get(k, k) not in args and v is not None}:
        raise NotImplementedError(f"arguments of the original that ours lacks: {unknown}")
    return MambaVision(**args).eval()


def convert(state_dict: dict[str, Tensor], model: MambaVision) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: MambaVision, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    return out | {"stem": model.stem(x), "logits": model.forward_head(final)}


def _blocks(record: dict) -> Iterator[Deviation]:
    table = torch.tensor(record["window_partition_4x6_window2"])
    model = MambaVision(
        dims=(8, 16, 24, 48), depths=(1, 1, 2, 1), stem_dim=4, num_heads=(1, 1, 4, 4), window_size=(1, 1, 2, 1)
    )
    seen = []
    hook = model.stages[2].blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.stages[2].downsample = torch.nn.Identity()
    with torch.no_grad():
        model.stages[2](torch.arange(24.0).view(1, 1, 4, 6).expand(1, 24, 4, 6))
    hook.remove()
    yield compare_operator("window order", seen[0][..., 0], table)

    for name, block in zip(("mixer", "attention"), model.stages[2].blocks, strict=True):
        case, prefix = record[name], "stages.2.blocks.0.mixer."
        source = {
            f"levels.2.blocks.0.mixer.{key}": torch.from_numpy(fill(key, tuple(shape))) for key, shape in case["keys"]
        }
        shapes = {prefix + k: tuple(v.shape) for k, v in block.mixer.state_dict().items()}
        converted = model.layout.convert(source, shapes)
        block.mixer.load_state_dict({k.removeprefix(prefix): v for k, v in converted.items()}, strict=True)
        x = torch.from_numpy(reference_input(case["input_shape_blc"], case["input_seed"]))
        if name == "mixer":
            block.mixer.window = (1, x.shape[1])  # row by row, so a window of one row does
        with torch.no_grad():
            y = block.mixer(x)
        yield compare_operator(name, y, np.reshape(case["output_blc"], y.shape))


OPERATORS = {"mambavision-blocks": _blocks}
