"""Round a trained classifier's weights and activations to few bits, and say what that costs.

python tools/quantize.py --checkpoint RUN/last.pth.tar --data-dir DIR --weight-bits 4 --rewrite --output w4a8.pth
python tools/quantize.py --checkpoint RUN/last.pth.tar --data-dir DIR --method int8-dynamic --output int8.pth

"simulated" rounds values and computes in floating point, to study accuracy (MambaQuant, arXiv:2501.13484): all linear
layers, depthwise convolutions and projections of scans, with ranges found on images of the training split. --rewrite
first evens out the channels' ranges without changing the function. "int8-weight-only" and "int8-dynamic" hold linear
layers as integers, by torchao. The file says what was done to it: all commands that read a classifier take it as it is.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import asdict
from typing import Any

from ..errors import UserError
from ..files import write_atomically
from . import _auto
from ._boundary import bounded
from ._inference_options import add_image_options, add_model_options, read_classifier
from ._parser import CommandParser, command_parser
from ._vocabulary import add_options

METHODS = ("simulated", "int8-weight-only", "int8-dynamic")


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = command_parser(__name__, __doc__)
    add = parser.add_argument
    add_options(parser, "data-dir", required=True)
    add_options(parser, "dataset")
    add("--output", metavar="FILE", help="write the quantised classifier here")
    add("--split", default="train", metavar="NAME", help="split that images are drawn from to find ranges")
    add("--samples", type=int, default=256, metavar="N", help="images to find ranges with")
    add("--val-split", default="validation", metavar="NAME", help="split that accuracies are of")
    add("--method", choices=METHODS, default="simulated", help="rounded values, or linear layers in integers")
    add("--weight-bits", type=int, default=8, metavar="N", help="bits of weights, simulated")
    add("--act-bits", type=int, default=8, metavar="N", help="bits of activations, simulated")
    add("--per-tensor", action="store_true", help="one range for a whole weight, not one for each output channel")
    add("--observer", choices=("minmax", "percentile"), default="minmax", help="how ranges of activations are found")
    add("--skip", nargs="+", default=[], metavar="PATH", help="modules to leave as they are")
    add(
        "--rewrite",
        nargs="*",
        metavar="STEP",
        help="rewritings before, in this order; without names all that the model has a place for",
    )
    add("--layers", action="store_true", help="also print each layer's signal-to-noise ratio")
    add_options(parser, "results-file", "batch-size", "workers", "device", "seed")
    add_model_options(parser)
    add_image_options(parser)
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args(argv)
    from ..engine.reports.progress import setup_logging

    setup_logging()
    try:
        run(args)
    except (ValueError, TypeError) as error:  # the library's, of what the options ask for
        raise UserError(str(error)) from error
    return 0


def run(args: argparse.Namespace) -> None:
    """Quantise, measure, write.

    Raises:
        UserError: Something about options or data needs the user.
        ValueError: As `quantize` and `rewrite`.
    """
    import torch

    from ..compression.quantization import Quantizer, quantize, signal_to_noise
    from ..compression.rewriting import applicable, rewrite
    from ..engine.data.loaders import create_eval_loader
    from ..engine.data.processes import resolve_device
    from ..engine.inference.calibration import calibration_batches, open_split
    from ..engine.inference.classifier import portable_checkpoint
    from ..engine.reports.rows import write_rows

    if args.method != "simulated" and (args.rewrite is not None or args.skip or args.layers):
        raise UserError("--rewrite, --skip and --layers belong to --method simulated")
    for bits in (args.weight_bits, args.act_bits):
        Quantizer(bits)
    device = resolve_device(args.device)
    classifier = read_classifier(args, args.model, device)
    if classifier.quantization:
        raise UserError("the checkpoint is quantised already; begin with the one in floating point")
    whole = copy.deepcopy(classifier.model)
    dataset = open_split(classifier, args.dataset, args.data_dir, args.val_split, batch_size=args.batch_size)
    loader = create_eval_loader(
        dataset,
        classifier.data_config,
        batch_size=args.batch_size,
        workers=_auto.workers(args.workers),
        device=device,
        bad_images=args.bad_images,
        reader=classifier.reader,
    )
    model = classifier.model
    told: dict[str, Any] = {"method": args.method}
    if args.method == "simulated":
        images = calibration_batches(
            classifier,
            open_split(classifier, args.dataset, args.data_dir, args.split),
            samples=args.samples,
            batch_size=args.batch_size,
            seed=args.seed,
            device=device,
            bad_images=args.bad_images,
        )
        steps: tuple[str, ...] = ()
        if args.rewrite is not None:
            steps = tuple(args.rewrite) or applicable(model)
            rewrite(model, steps, loader=images, seed=args.seed)
            print(f"rewritten: {', '.join(steps)}")
        done = quantize(
            model,
            images,
            weight_bits=args.weight_bits,
            act_bits=args.act_bits,
            per_channel=not args.per_tensor,
            observer=args.observer,
            skip=args.skip,
        )
        told |= asdict(done) | {"steps": list(steps)}
        stored = done.bytes(model)
        if args.layers:
            for name, ratio in signal_to_noise(whole, model, images[0][0]).items():
                print(f"  {name:48s} {ratio:6.1f} dB")
        content = portable_checkpoint(classifier, args.checkpoint, args.weights) | {"quantization": told}
    else:
        from ..compression.integer import flatten, size, to_integers

        to_integers(model, args.method)
        content = portable_checkpoint(classifier, args.checkpoint, args.weights)
        content["state_dict"], told["text"] = flatten(content["state_dict"])
        content["quantization"] = told
        stored = size(content["state_dict"])

    before, after, agreement = compare(whole, model, loader, device)
    row = {
        "model": classifier.name,
        "method": args.method,
        "weight_bits": args.weight_bits if args.method == "simulated" else 8,
        "act_bits": args.act_bits if args.method == "simulated" else (8 if args.method == "int8-dynamic" else 32),
        "rewritten": args.rewrite is not None,
        "float_top1": round(before["top1"], 3),
        "top1": round(after["top1"], 3),
        "float_loss": round(before["loss"], 5),
        "loss": round(after["loss"], 5),
        "agreement": round(agreement, 3),
        "float_kb": round(sum(p.numel() * p.element_size() for p in whole.parameters()) / 1000, 1),
        "kb": round(stored / 1000, 1),
    }
    print(
        f"{classifier.name}, {args.method}"
        + (f" W{args.weight_bits}A{args.act_bits}" if args.method == "simulated" else "")
        + f": top-1 {row['float_top1']:.2f} -> {row['top1']:.2f} %, loss {row['float_loss']:.4f} -> {row['loss']:.4f}, "
        f"same prediction for {row['agreement']:.2f} %, weights {row['float_kb']:.1f} -> {row['kb']:.1f} kB"
    )
    if args.results_file:
        write_rows(args.results_file, [row])
    if args.output:
        write_atomically(args.output, lambda file: torch.save(content, file))
        print(f"quantised: {args.output}")


def compare(whole: Any, model: Any, loader: Any, device: Any) -> tuple[dict[str, float], dict[str, float], float]:
    """Return loss and accuracies of two models, and in percent how often both predict the same."""
    import torch

    from ..engine.inference.evaluation import evaluate
    from ..engine.inference.models import autocast

    results, predictions = [], []
    for each in (whole, model):
        found: list[torch.Tensor] = []

        def keep(logits: torch.Tensor, _: torch.Tensor, found: list[torch.Tensor] = found) -> None:
            found.append(logits.argmax(-1))

        results.append(evaluate(each, loader, device, autocast=autocast(device, None), on_batch=keep))
        predictions.append(torch.cat(found))
    same = (predictions[0] == predictions[1]).double().mean()
    return results[0], results[1], 100 * float(same)
