"""Export a model with torch.export or to ONNX and check the written file.

python tools/export.py vmamba_tiny_s1l8 --output vmamba_tiny.onnx
python tools/export.py vmamba_tiny_s1l8 --checkpoint authors.pth --img-size 384 512 --output vmamba_tiny.pt2

A .pt2 program calls the operators of visionssm: where it is loaded, the package must be installed and imported first
(import visionssm). An .onnx file needs nothing but a runtime.
"""

import argparse
import sys
from pathlib import Path

import torch

from ..analysis.exporting import export_model
from ..errors import UserError
from ._inference_options import add_model_options, read_classifier


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="name of a model; a run's checkpoint says it itself")
    parser.add_argument("--output", type=Path, required=True, help="file to write: .pt2 (torch.export) or .onnx")
    parser.add_argument("--img-size", type=int, nargs="+", metavar="N", help="height and width, or one for both")
    parser.add_argument("--static-batch", action="store_true", help="fix the batch size to 1")
    add_model_options(parser, model_help=None)
    args = parser.parse_args(argv)
    try:
        classifier = read_classifier(args, args.model, images={"img_size": None}, exportable=True)
    except UserError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    channels, *size = classifier.data_config["input_size"]
    if args.img_size:
        size = (args.img_size * 2)[:2]
    if args.output.suffix in (".pt", ".pth", ".torchscript", ".ts"):
        print(
            f"export: {args.output.name} would be TorchScript, which PyTorch has deprecated and which cannot hold "
            "operators with Python kernels; write .pt2 or .onnx",
            file=sys.stderr,
        )
        return 2
    image = torch.randn(1 if args.static_batch else 2, channels, *size)
    try:
        difference = export_model(classifier.model, image, args.output, dynamic_batch=not args.static_batch)
    except (ValueError, ImportError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(
        f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB, images of {size[0]} x {size[1]}, "
        f"largest difference to the model {difference:.1e}"
    )
    return 0
