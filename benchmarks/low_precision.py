"""Accuracy, size and speed of half-precision and int8 inference on a CPU, with PyTorch's and torchao's own tools.

    python benchmarks/low_precision.py --checkpoint work/demo/last.pth.tar --data-dir work/digits
                                       [--models vmamba_tiny_s1l8 ...] [--output benchmarks/results/low_precision.md]

The checkpoint's accuracy is measured on all validation images; --models adds published sizes with random weights, of
which only size, speed and the difference of the logits are told.
"""

import argparse
import copy
import io
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import timm
import torch
from timing import seconds_in_turn
from torch import Tensor, nn

import visionssm  # noqa: F401  registers the models
from visionssm.engine.inference.classifier import load_classifier
from visionssm.engine.inference.prediction import find_images
from visionssm.files import write_text


def dynamic_int8(model: nn.Module) -> nn.Module:
    """PyTorch's dynamic quantisation: int8 weights and inputs of every linear layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def int8_weights(model: nn.Module) -> nn.Module:
    """torchao's int8 weights of every linear layer; products in float32."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return model


FORMS: dict[str, tuple[Callable[[nn.Module], nn.Module], torch.dtype]] = {
    "float32": (lambda model: model, torch.float32),
    "bfloat16": (lambda model: model.bfloat16(), torch.bfloat16),
    "float16": (lambda model: model.half(), torch.float16),
    "int8 dynamic (PyTorch)": (dynamic_int8, torch.float32),
    "int8 weights (torchao)": (int8_weights, torch.float32),
}


def size_of(model: nn.Module) -> int:
    """Bytes of the stored weights."""
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    return stream.tell()


def read(checkpoint: str, data_dir: str) -> tuple[str, nn.Module, Tensor, Tensor]:
    """Name, model, validation images and labels."""
    classifier = load_classifier(None, checkpoint)
    config = classifier.data_config
    paths = find_images([Path(data_dir) / "validation"])
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    images = []
    for path in paths:
        image = classifier.reader.read(path, str(path)).resize(config["input_size"][:0:-1])
        pixels = torch.from_numpy(np.array(image)).float() / 255
        images.append(pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None])
    labels = torch.tensor([(classifier.class_map or {})[path.parent.name] for path in paths])
    return classifier.name, classifier.model, (torch.stack(images) - mean) / std, labels


@torch.no_grad()
def rows_of(name: str, model: nn.Module, images: Tensor, labels: Tensor | None, repeats: int) -> list[str]:
    """A row for each form."""
    forms = {form: (make(copy.deepcopy(model).eval()), dtype) for form, (make, dtype) in FORMS.items()}
    logits = {
        form: torch.cat([m(part.to(dtype)).float() for part in images.split(64)]) for form, (m, dtype) in forms.items()
    }
    calls = {form: partial(m, images[:1].to(dtype)) for form, (m, dtype) in forms.items()}
    times = seconds_in_turn(calls, 1, repeats)
    expected, lines = logits["float32"], []
    spread = expected.max() - expected.min()
    for form, (converted, _) in forms.items():
        right = "" if labels is None else f"{100 * (logits[form].argmax(1) == labels).float().mean():.2f} %"
        difference = ((logits[form] - expected).abs().max() / spread).item()
        lines.append(
            f"| {name} | {form} | {right} | {difference:.1e} | {size_of(converted) / 2**20:.2f} "
            f"| {1e3 * times[form]:.1f} | {times[form] / times['float32']:.2f} |"
        )
        print(lines[-1], flush=True)
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="checkpoint of a run")
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="data set with a folder validation")
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME", help="published sizes, random weights")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/low_precision.md"))
    args = parser.parse_args(argv)
    if find_spec("torchao") is None:
        parser.error("torchao is missing: pip install 'visionssm[ecosystem]'")
    torch.set_num_threads(1)
    name, model, images, labels = read(args.checkpoint, args.data_dir)
    lines = rows_of(name, model, images, labels, args.repeats)
    for other in args.models:
        torch.manual_seed(0)
        built = timm.create_model(other).eval()
        lines += rows_of(other, built, torch.randn(1, *built.pretrained_cfg["input_size"]), None, args.repeats)
    models = f" --models {' '.join(args.models)}" if args.models else ""
    head = [
        "# Half-precision and int8 inference on a CPU",
        "",
        f"Written by `python benchmarks/low_precision.py --checkpoint {args.checkpoint} --data-dir {args.data_dir}"
        f"{models}`: the model of `make demo` on its {len(labels)} validation digits"
        + (", published sizes with random weights" if models else "")
        + ". Differences are the largest ones of the logits to those of float32, over the spread of the latter; sizes "
        "are those of the stored weights in MiB, times those of one image with one thread, in milliseconds and over "
        f"float32's. Scans compute in float32 in every form. torch {torch.__version__}.",
        "",
        "| model | form | top-1 | difference | MiB | ms | ratio |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    write_text(args.output, "\n".join([*head, *lines, ""]))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
