"""Export a model to ONNX, as a torch.export program or as a folder that timm loads, and check what was written.

python tools/export.py --checkpoint work/demo/last.pth.tar --output digits.onnx
python tools/export.py --model vmamba_tiny_s1l8 --pretrained --img-size 384 512 --output vmamba_tiny.pt2 --standalone
python tools/export.py --model vmamba_tiny_s1l8 --features-only --output maps.onnx
python tools/export.py --model vm_unet --num-classes 9 --checkpoint authors.pth --output vm_unet.onnx
python tools/export.py --checkpoint work/demo/last.pth.tar --output FOLDER --push OWNER/NAME
python tools/export.py --all 'test_*' --output table.md

A .pt2 program calls the operators of visionssm: where it is loaded, the package must be installed and imported first
(import visionssm), or it is written with --standalone. An .onnx file needs nothing but a runtime; how the images are
prepared and the names of the classes stand in its metadata.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ._boundary import bounded
from ._export_table import write_table
from ._exporting import attempt, sized
from ._inference_options import add_model_options, read_classifier
from ._parser import command_parser

_SIZE = 64  # of a dense model's images, where none is given


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = command_parser(__name__, __doc__)
    add = parser.add_argument
    parser.former_positionals = ["--model"]
    add(
        "--output",
        type=Path,
        required=True,
        help="file to write: .onnx, .pt2 (torch.export), a folder for timm's local-dir: (no ending), or --all's table",
    )
    add("--img-size", type=int, nargs="+", metavar="N", help="height and width, or one for both")
    add("--static-batch", action="store_true", help="fix the batch size to 1")
    add("--dynamic-size", action="store_true", help="leave height and width open, which models without a scan can")
    add("--features-only", action="store_true", help="feature maps in the place of logits")
    add("--half", action="store_true", help="weights and images in float16")
    add("--tolerance", type=float, metavar="X", help="largest difference allowed (default: 1e-4, in float16 3e-2)")
    add("--standalone", action="store_true", help="a .pt2 that loads where visionssm is not installed")
    add(
        "--push",
        metavar="OWNER/NAME",
        help="repository on the Hugging Face hub for the folder; only shown without --yes",
    )
    add("--yes", action="store_true", help="really push")
    add(
        "--all",
        nargs="*",
        metavar="PATTERN",
        help="export every model that matches to ONNX and write a table, Markdown and CSV; rows that it has stay",
    )
    add_model_options(
        parser, model_help="name of a classifier, segmenter or restorer; a run's checkpoint says it itself"
    )
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    _check(args)
    if args.all is not None:
        write_table(args.all or ["*"], args.output, args.img_size)
    elif not args.output.suffix:
        _write_folder(args)
    else:
        _write_program(args)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is built."""
    from ..analysis.exporting import FORMATS

    ending = args.output.suffix
    if args.img_size and min(args.img_size) < 1:
        raise UserError(f"--img-size takes sizes of at least 1, found {args.img_size}")
    if args.all is not None:
        if ending != ".md":
            raise UserError(f"--all writes a table: --output ends in .md, found {args.output}")
        others = "model checkpoint half features_only dynamic_size static_batch tolerance".split()
        if told := [f"--{key.replace('_', '-')}" for key in others if getattr(args, key)]:
            raise UserError(f"--all exports every model in the same ways: leave out {', '.join(told)}")
        return
    if ending in (".pt", ".pth", ".torchscript", ".ts"):
        raise UserError(
            f"{args.output.name} would be TorchScript, which PyTorch has deprecated and which cannot hold operators "
            "with Python kernels; write .pt2 or .onnx"
        )
    if ending and ending not in FORMATS:
        raise UserError(f"--output ends in {', '.join(FORMATS)}, or is a folder without an ending; found {args.output}")
    if args.standalone and ending != ".pt2":
        raise UserError("--standalone is for .pt2; an .onnx file never needs this package")
    if args.push and ending:
        raise UserError("--push uploads a folder: give --output without an ending")
    if args.yes and not args.push:
        raise UserError("--yes confirms --push, which is not given")
    if not ending and (args.features_only or args.half or args.img_size or args.dynamic_size or args.tolerance):
        raise UserError("a folder for timm holds the model as it is: export .onnx or .pt2 for another form of it")
    if args.tolerance is not None and not args.tolerance > 0:
        raise UserError(f"--tolerance is a share of the outputs' spread above 0, found {args.tolerance}")


def _write_program(args: argparse.Namespace) -> None:
    import torch

    from ..analysis.exporting import FeatureMaps, export_model
    from ..restoration import list_models as restorers
    from ..segmentation import list_models as segmenters

    dense = {name: "logits" for name in segmenters()} | {name: "restored" for name in restorers()}
    metadata: dict[str, str] = {}
    name = args.model or _name_in(args.checkpoint, args.weights)
    if name in dense:
        if args.features_only:
            raise UserError(f"{name} is a dense model, whose output is a map already; leave out --features-only")
        model, output_name = _dense_model(args, name), dense[name]
        dims = getattr(model, "spatial_dims", 2)
        shape = [model.in_chans, *sized(args.img_size or [_SIZE], dims)]
        metadata = {"model": name}
    else:
        _known(args.model, dense)
        classifier = read_classifier(args, args.model, images={"img_size": None}, exportable=True)
        name, model, output_name = classifier.name, classifier.model, "logits"
        channels, *size = classifier.data_config["input_size"]
        size = sized(args.img_size, 2) if args.img_size else size
        if args.img_size and hasattr(model, "set_input_size"):
            attempt(lambda: model.set_input_size(tuple(size)), name)
        shape = [channels, *size]
        metadata = _metadata(classifier, size)
        if args.features_only:
            model, output_name = attempt(lambda: FeatureMaps(model), name), "features"
    dtype = torch.float16 if args.half else torch.float32
    image = torch.randn(1 if args.static_batch else 2, *shape).to(dtype)
    told = attempt(
        lambda: export_model(
            model.to(dtype),
            image,
            args.output,
            dynamic_batch=not args.static_batch,
            dynamic_size=args.dynamic_size,
            standalone=args.standalone,
            output_name=output_name,
            metadata=metadata,
            tolerance=args.tolerance,
        ),
        f"{name} at {' x '.join(map(str, shape[1:]))}",
    )
    beside = f" with {args.output.name}.data" if told.size > args.output.stat().st_size else ""
    print(
        f"{args.output}{beside}: {told.size / 2**20:.1f} MiB, {told.nodes} operators, images of "
        f"{' x '.join(map(str, shape[1:]))}, "
        f"largest difference to the model {told.difference:.1e} of the outputs' spread"
    )


def _known(name: str | None, dense: dict[str, str]) -> None:
    from timm.models import is_model, list_models

    if name is not None and not is_model(name.split(".")[0]) and ":" not in name:
        raise UserError(f"there is no model {name!r}{nearest(name, [*list_models(), *dense])}")


def _name_in(checkpoint: str | None, weights: str) -> str | None:
    """The model that a run's checkpoint says it is of, if it does."""
    from ..checkpoints import read

    return read(checkpoint, weights).options.get("model") if checkpoint else None


def _dense_model(args: argparse.Namespace, name: str) -> Any:
    from .. import segmentation
    from ..engine.inference.restoration import load_restorer

    kwargs = dict(args.model_kwargs)
    kwargs |= {key: getattr(args, key) for key in ("num_classes", "in_chans") if getattr(args, key) is not None}
    if name in segmentation.list_models():
        return attempt(lambda: segmentation.create_model(name, checkpoint=args.checkpoint, **kwargs), name)
    return load_restorer(name, args.checkpoint, weights=args.weights, model_kwargs=kwargs)[1]


def _metadata(classifier, size: list[int]) -> dict[str, str]:
    """How images are prepared and what the outputs mean, as texts."""
    config = classifier.data_config
    facts = {key: config[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode") if key in config}
    facts |= {"model": classifier.name, "input_size": [config["input_size"][0], *size]}
    if classifier.classes:
        facts["classes"] = classifier.classes
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def _write_folder(args: argparse.Namespace) -> None:
    """safetensors and config.json, read back once."""
    import timm
    import torch
    from timm.models import push_to_hf_hub, save_for_hf

    if args.output.is_file():
        raise UserError(f"{args.output} is a file; a folder is written")
    _known(args.model, {})
    classifier = read_classifier(args, args.model)
    config = {key: classifier.data_config[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")}
    labels = {"label_names": classifier.classes} if classifier.classes else {}
    given = {"model_config": labels, "safe_serialization": True, "data_config": config}

    def save() -> Any:
        save_for_hf(classifier.model, args.output, **given)
        return timm.create_model(f"local-dir:{args.output.resolve()}", pretrained=True).eval()

    again = attempt(save, classifier.name)
    images = torch.randn(1, *classifier.data_config["input_size"])
    with torch.no_grad():
        if not torch.equal(again(images), classifier.model(images)):
            raise UserError(f"{args.output} does not give the model's outputs when timm loads it again")
    files = sorted(path for path in args.output.iterdir() if path.name in ("config.json", "model.safetensors"))
    print(f"{args.output}: import visionssm; timm.create_model('local-dir:{args.output}', pretrained=True)")
    if args.push and not args.yes:
        listed = ", ".join(f"{path.name} ({path.stat().st_size / 2**20:.1f} MiB)" for path in files)
        print(f"would push {listed} to {args.push}; add --yes to do it")
    elif args.push:
        print(f"pushed: {attempt(lambda: push_to_hf_hub(classifier.model, args.push, **given), args.push)}")
