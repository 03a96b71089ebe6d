"""MobileMamba against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visionssm  # noqa: F401
from visionssm.models._builder import make_kit
from visionssm.models.mobilemamba import ConvSS2D, GlobalMixer, MobileMamba, MobileMambaDownsample, WaveletConv

from . import Case, Deviation, compare_operator, fill, reference_input, registered_names

RECORDS = ("mobilemamba_*",)
FAST = ("mobilemamba_t2",)


def build(case: Case) -> MobileMamba:
    if case.variant in registered_names():
        return timm.create_model(registered_names()[case.variant]).eval()
    config = case.config
    return MobileMamba(
        dims=config["embed_dim"],
        depths=config["depth"],
        global_ratio=config["global_ratio"],
        local_ratio=config["local_ratio"],
        kernel_sizes=config["kernels"],
        ssm_ratio=config["ssm_ratio"],
        drop_path_rate=config["drop_path"],
        num_classes=config.get("num_classes", 1000),
        in_chans=config.get("in_chans", 3),
    ).eval()


def convert(state_dict: dict[str, Tensor], model: MobileMamba) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: MobileMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    out["stem"] = model.stem(x)
    out["logits"] = model.forward_head(final)
    return out


def _load(module: nn.Module, place: str, keys: list, published: str) -> None:
    """Fill a part of the model by the names that it has in a whole file; wavelet filters keep Haar's values."""
    source = {published + k: torch.from_numpy(fill(k, shape)) for k, shape in keys if not k.endswith("wt_filter")}
    shapes = {place + k: v.shape for k, v in module.state_dict().items()}
    converted = MobileMamba.layout.convert(source, shapes)
    ours = {k.removeprefix(place): v for k, v in converted.items()}
    module.load_state_dict(dict(module.state_dict(), **ours), strict=True)
    assert len(ours) == len(source)


def _blocks(record: dict) -> Iterator[Deviation]:
    kit = make_kit("relu", nn.LayerNorm, 1e-5, 0.0, None, None)
    mixer, attention = "stages.0.blocks.0.mixer.", "blocks1.0.mixer.m.attn."

    def run(module, case):
        x = torch.from_numpy(reference_input(case["input_shape"], case["input_seed"]))
        with torch.no_grad():
            y = module.eval()(x)
        return y, np.array(case["output"]).reshape(y.shape)

    case = record["ss2d_bidi"]
    ss2d = ConvSS2D(case["config"]["d_model"], 2 * case["config"]["d_model"], "bidirectional", kit)
    _load(ss2d, f"{mixer}global_mixer.mixer.", case["keys"], f"{attention}global_op.global_atten.")
    yield compare_operator("scan", *run(ss2d, case))

    haar = record["haar_filters_per_channel"]
    wavelet = WaveletConv(16, 5)
    for ours, name in ((wavelet.analysis, "dec"), (wavelet.synthesis, "rec")):
        yield compare_operator(f"filters {name}", ours[:4], np.array(haar[name]).reshape(haar["shape"]))
    case = record["haar_analysis"]
    x = torch.from_numpy(reference_input(case["input_shape"], case["input_seed"]))
    bands = F.conv2d(F.pad(x, (0, 1, 0, 1)), wavelet.analysis, stride=2, groups=16).unflatten(1, (16, 4))
    yield compare_operator("bands", bands, np.array(case["output"]).reshape(case["output_shape"]))

    case = record["mbwt_global_op"]
    config = case["config"]
    whole = GlobalMixer(
        config["channels"], config["ssm_ratio"] * config["channels"], config["kernel"], "bidirectional", kit
    )
    _load(whole, f"{mixer}global_mixer.", case["keys"], f"{attention}global_op.")
    yield compare_operator("global mixer", *run(whole, case))

    case = record["patch_merging"]
    merging = MobileMambaDownsample(case["config"]["dim"], case["config"]["out_dim"], kit)
    merging.pre, merging.post = nn.Identity(), nn.Identity()
    _load(merging, "stages.1.downsample.", case["keys"], "blocks2.1.")
    yield compare_operator("downsampling", *run(merging, case))


OPERATORS = {"mobilemamba-blocks": _blocks}
