"""Methods applied to models against recorded runs of the original tools."""

import ast
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionssm.compression.pruning import aligned_scan, select_tokens, token_scores
from visionssm.compression.quantization import Quantizer
from visionssm.compression.shedding import Shedding, shed, without
from visionssm.layers import StreamBlock
from visionssm.models._plain import Grid
from visionssm.models._reorder import TokenReorder, sort_matrix
from visionssm.models.mambavision import MambaVision, WindowMixer
from visionssm.models.vim import Vim
from visionssm.ops import causal_conv1d
from visionssm.pretraining.constrained import constrained_projection, interaction_eigenvalues
from visionssm.pretraining.interpolation import interpolate_tokens
from visionssm.pretraining.masking import cell_errors, reconstruction_loss

from . import (
    Case,
    Deviation,
    compare_operator,
    compare_summary,
    families,
    fill,
    fill_state_dict,
    reference_input,
)
from .tolerances import LOGITS


def _input(text: str) -> Tensor:
    """What "reference_input((2, 5), 35) + 3.0" says; the addend may be missing."""
    call, _, shift = text.partition(" + ")
    shape, seed = ast.literal_eval(call.removeprefix("reference_input"))
    return torch.from_numpy(reference_input(shape, seed)) + float(shift or 0)


def _array(entry: dict) -> np.ndarray:
    return np.array(entry["data"]).reshape(entry["shape"])


def _vim(record: dict) -> Vim:
    module = families()["vim"]
    config = {"d_state": 16, **record["config"]}
    config.setdefault("if_divide_out", config.get("if_devide_out"))
    model = module.build(Case("", "vim", {"variant": "", "config": config}))
    source = fill_state_dict([(key, tuple(shape)) for key, shape in record["keys"]])
    model.load_state_dict(module.convert(source, model))
    return model


def _shedding(record: dict) -> Iterator[Deviation]:
    images = torch.from_numpy(reference_input(tuple(record["input_shape"]), record["seed"]))
    loader = [(images, torch.tensor(record["labels"]))]
    model = _vim(record)
    for kind, path in (("block", "blocks.{}"), ("ssm", "blocks.{}.mixer.ssm")):
        whole, *steps = record[kind]["steps"]
        found: Shedding = shed(model, loader, len(steps), kind=kind)
        yield Deviation(f"{kind}, whole model", abs(found.whole - whole["loss"]), 1e-5)
        for i, (ours, step) in enumerate(zip(found.steps, steps, strict=True)):
            expected = {path.format(block): loss for block, loss in step["candidates"].items()}
            assert ours.candidates.keys() == expected.keys(), "other candidates than recorded"
            worst = max(abs(ours.candidates[name] - loss) for name, loss in expected.items())
            yield Deviation(f"{kind}, losses of step {i}", worst, 1e-5)
            yield Deviation(f"{kind}, loss after step {i}", abs(ours.value - step["loss"]), 1e-5)
            removed = [path.format(block) for block in step["removed"]]
            yield Deviation(f"{kind}, choices to step {i}", float(list(found.removed[: i + 1]) != removed), 0.0)
        with torch.no_grad(), without(model, found.removed):
            expected = _array(record[kind]["logits"])
            yield compare_operator(f"{kind}, logits", model(images[: len(expected)]), expected, LOGITS)


def _quantizer(record: dict) -> Iterator[Deviation]:
    for kind in ("weights", "activations"):
        for i, case in enumerate(record[kind]):
            x = _input(case["input"])
            quantizer = Quantizer(case["bits"], case.get("axis"))
            for data in map(_input, case.get("calibration", [case["input"]])):
                quantizer.observe(data)
            yield compare_operator(f"{kind} {i}", quantizer(x), _array(case["output"]), 1e-6)
            yield compare_operator(f"{kind} {i}, step", quantizer.scale, case["scale"], 1e-6)
            yield compare_operator(f"{kind} {i}, zero", quantizer.zero, case["zero"], 0.0)


def _interpolation(record: dict) -> Iterator[Deviation]:
    dim, side, seed = record["channels"], record["side"], record["seed"]
    transition = 0.5 * torch.from_numpy(reference_input((1, dim, dim), seed))[0] / dim**0.5
    x = torch.from_numpy(reference_input((1, dim, side, side, side), seed + 1)).flatten(2).mT
    visible = torch.zeros(1, side**3, dtype=torch.bool)
    visible[0, record["kept"]] = True
    yield compare_operator("tokens", interpolate_tokens(x, visible, transition)[0], _array(record["tokens"]))


def _loss(record: dict) -> Iterator[Deviation]:
    cell, seed, size = record["ratio"], record["seed"], record["side"] * record["ratio"]
    image, found = (torch.from_numpy(reference_input((2, 1, size, size, size), seed + i)) for i in range(2))
    yield compare_operator("errors", cell_errors(found, image, cell), _array(record["per_patch"]))
    visible = torch.tensor(record["active"]).bool()
    yield compare_operator("loss", reconstruction_loss(found, image, visible, cell), record["loss"])


def _window_mixer(record: dict, reorder: TokenReorder | None) -> WindowMixer:
    config = record["config"]
    dim, prefix = config["d_model"], "stages.2.blocks.0.mixer."
    mixer = WindowMixer(dim, 1, "raster", config["d_state"], config["d_conv"], reorder=reorder, restore=False).eval()
    mixer.window = (1, 9)  # row by row, so a window of one row does
    source = {
        f"levels.2.blocks.0.mixer.{key}": torch.from_numpy(fill(key, tuple(shape)))
        for key, shape in record["keys"]
        if reorder is not None or "imporantness" not in key
    }
    shapes = {prefix + k: tuple(v.shape) for k, v in mixer.state_dict().items()}
    weights = MambaVision.layout.convert(source, shapes)
    mixer.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items()}, strict=True)
    return mixer


def _reordering(record: dict) -> Iterator[Deviation]:
    x, config = _input(record["input"]).requires_grad_(), record["config"]
    dim = config["d_model"] // 2
    mixer = _window_mixer(record, TokenReorder(dim, config["tau"], config["pow"]))
    seen = []
    mixer.reorder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    y = mixer(x)
    score = mixer.reorder.score(seen[0])
    yield compare_operator("score", score, _array(record["score"]))
    yield compare_operator("matrix", sort_matrix(score, config["tau"], config["pow"]), _array(record["matrix"]))
    yield compare_operator("output", y, _array(record["output"]))
    weight = mixer.reorder.importance.weight
    grads = torch.autograd.grad((y * torch.from_numpy(reference_input(tuple(y.shape), 7))).sum(), [x, weight])
    yield compare_summary("gradient of the input", grads[0], record["grads"]["input"], 1e-4)
    yield compare_operator("gradient of the score", grads[1], _array(record["grads"]["score_weight"]), 1e-4)
    mixer = _window_mixer(record, TokenReorder(dim, hard=True))
    with torch.no_grad():
        hard = mixer(x)
        yield compare_operator("order", score.argsort(dim=1, stable=True), record["hard"]["order"], 0.0)
        plain = _window_mixer(record, None)(x)
    for name, found in (("hard", hard), ("plain", plain)):
        yield compare_operator(f"{name} output", found, _array(record[name]["output"]))


def _projection(record: dict) -> Iterator[Deviation]:
    free, rank, states = _input(record["input"]), record["rank"], record["states"]
    for signs in ("positive", "negative", "mixed"):
        weight = constrained_projection(free, rank, signs)
        yield compare_operator(f"{signs} weight", weight, _array(record[signs]["weight"]))
        values = interaction_eigenvalues(*weight[rank:].double().split(states))
        largest = values[values.abs().argsort(descending=True)[:states]].sort(descending=True).values
        yield compare_operator(f"{signs} eigenvalues", largest, record[signs]["eigenvalues"])


def _aligned(record: dict) -> Iterator[Deviation]:
    u, delta, a, b, c = (torch.from_numpy(reference_input(s, i + 1)) for i, s in enumerate(record["shapes"].values()))
    u, b, c, delta = u.mT, b.mT, c.mT, F.softplus(delta).mT
    keep = record["keep"]
    lost = torch.ones(u.shape[1])
    lost[keep] = 0
    total = (delta * lost.view(1, -1, 1)).cumsum(1)[:, keep]
    skipped = total.diff(dim=1, prepend=torch.zeros_like(total[:, :1]))
    parts = (delta[:, keep], -torch.exp(a), b[:, keep], c[:, keep])
    for name, gap in (("aligned", skipped), ("naive", torch.zeros_like(skipped))):
        y = aligned_scan(u[:, keep], *parts, gap).mT
        yield compare_operator(name, y, np.array(record[name]).reshape(record["output_shape"]))


def _backward_branch(block: StreamBlock, x: Tensor, length: int) -> Tensor:
    """Gated output of the second direction, as scanned: token i stands at length - 1 - i."""
    mixer = block.mixer
    u, z = mixer.in_proj(block.norm(x)).chunk(2, dim=-1)
    order = mixer.order(1, length - 1, x.device)
    u = mixer.act(causal_conv1d(u, mixer.conv_weight, mixer.conv_bias, order))
    return mixer.ssm(u, order, num_tokens=length, by_step=True, out="step")[:, :, 1] * mixer.act(z.flip(1))


@torch.no_grad()
def _released_pruning(record: dict) -> Iterator[Deviation]:
    """The released steps with their defects, which the library does not have: mirrored scores, an odd number kept."""
    model = _vim(record)
    x, _ = model.embed(torch.from_numpy(reference_input((1, 3, 224, 224), 0)))
    steps = {step["after_block"]: step for step in record["steps"]}
    original = torch.arange(x.shape[1])
    for i, block in enumerate(model.blocks):
        length = x.shape[1]
        step = steps.get(i)
        score = None if step is None else token_scores(_backward_branch(block, x, length), clipped=False)
        x = model.run_block(i, x, Grid(1, length - 1))
        if score is None:
            continue
        yield compare_operator(f"score after block {i}", score, [step["score"]], 1e-4)
        count = math.ceil((length - 1) * 0.8)
        count += count % 2 == 0
        middle = length // 2
        patches = torch.cat([score[:, :middle], score[:, middle + 1 :]], 1)
        best = select_tokens(patches, (count - 1) / (length - 1))
        best = best + (best >= middle)
        half = (count - 1) // 2
        kept = torch.cat([best[:, :half], best.new_tensor([[middle]]), best[:, half:]], 1)
        yield compare_operator(f"kept after block {i}", kept[0], step["kept"], 0.0)
        x, original = x[:, kept[0]], original[kept[0]]
        yield compare_operator(f"first tokens kept after block {i}", original, step["kept_original"], 0.0)
    logits = model.head(model.finish(x)[:, (x.shape[1] - 1) // 2])
    yield compare_operator("logits", logits[0], record["logits"], LOGITS)


OPERATORS = {
    "tokendynamics-mixer-*": _reordering,
    "tokendynamics-projection-*": _projection,
    "topvim-aligned_scan*": _aligned,
    "topvim-released_step*": _released_pruning,
    "mambamim-interpolation-*": _interpolation,
    "mambamim-loss-*": _loss,
    "mambaquant-quantizer-*": _quantizer,
    "mambashedder-*": _shedding,
}
