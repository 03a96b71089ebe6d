"""Compute the GPU memory of a training step from shapes, by model, image size and batch size.

python tools/memory.py --model 'vmamba_*' --amp --img-size 224 384 --batch-size 64 128
python tools/memory.py --model vmamba_base_s1l20 --amp --img-size 224 --processes 8 32 --throughput 400 --price 2

Without a name every published variant is computed. With --processes: what each process of DDP and of FSDP2 takes, and
what it sends in a step. With --throughput: hours, and with --price what they cost.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, nearest
from ..files import write_text
from ._boundary import bounded
from ._parser import CommandParser, FormerChoice, command_parser
from ._vocabulary import add_options

if TYPE_CHECKING:
    from ..analysis.memory import TrainingMemory

GIB, MIB = 2**30, 2**20
# what --precision said, in the words of all other commands
PRECISIONS = {
    "float32": {"amp": False},
    "float16": {"amp": True, "amp_dtype": "float16"},
    "bfloat16": {"amp": True, "amp_dtype": "bfloat16"},
}


def row(name: str, size: int, checkpointing: bool, args: argparse.Namespace) -> dict:
    """What one setting takes, in MiB and GiB."""
    from ..analysis.memory import training_memory

    precision = args.amp_dtype if args.amp else "float32"
    memory = training_memory(name, size, precision=precision, checkpointing=checkpointing)
    return several(name, memory, args) | {
        "model": name,
        "img_size": size,
        "precision": precision,
        "checkpointing": checkpointing,
        "fixed_mib": round((memory.state + memory.shared) / MIB, 1),
        "per_image_mib": round(memory.per_image / MIB, 2),
        "gib": {batch: round(memory.total(batch) / GIB, 2) for batch in args.batch_size},
        "largest_batch": memory.largest_batch(int(args.limit * GIB)),
    }


def several(name: str, memory: TrainingMemory, args: argparse.Namespace) -> dict:
    """What every process takes and sends where there are several, in GiB and MiB."""
    if not args.processes:
        return {}
    import timm

    from ..analysis.scaling import weights_of
    from ..engine.training.sharding import units

    model = timm.create_model(name, device="meta")
    weights = weights_of(model, units(model))
    return {
        "weights_mib": round(weights.total / MIB, 1),
        "ddp_gib": {b: round(weights.ddp_memory(memory, b) / GIB, 2) for b in args.batch_size},
        "fsdp_gib": {
            n: {b: round(weights.fsdp_memory(memory, b, n) / GIB, 2) for b in args.batch_size} for n in args.processes
        },
        "ddp_sent_mib": {n: round(weights.ddp_traffic(n) / MIB, 1) for n in args.processes},
        "fsdp_sent_mib": {n: round(weights.fsdp_traffic(n) / MIB, 1) for n in args.processes},
    }


def processes_table(rows: list[dict], args: argparse.Namespace) -> list[str]:
    """The rows of one image size by number of processes; memory without / with checkpointing."""
    columns = ["model", "processes"]
    columns += [f"{kind}, batch {b} each (GiB)" for b in args.batch_size for kind in ("DDP", "FSDP2")]
    columns += ["DDP sends (MiB)", "FSDP2 sends (MiB)"]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for plain, saving in zip(rows[::2], rows[1::2], strict=True):
        for n in args.processes:
            cells = []
            for b in args.batch_size:
                cells.append(f"{plain['ddp_gib'][b]:.1f} / {saving['ddp_gib'][b]:.1f}")
                cells.append(f"{plain['fsdp_gib'][n][b]:.1f} / {saving['fsdp_gib'][n][b]:.1f}")
            cells += [f"{plain['ddp_sent_mib'][n]:.0f}", f"{plain['fsdp_sent_mib'][n]:.0f}"]
            lines.append(f"| `{plain['model']}` | {n} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Of each process. DDP's includes its buckets; FSDP2 (`--fsdp`) holds a share of all float32 state and "
        "gathers one layer at a time. What it sends is in float32, by DDP per update, by FSDP2 per step.",
        "",
    ]


def cost_lines(args: argparse.Namespace) -> list[str]:
    """Hours, and their price, from the throughput that the reader has measured."""
    from ..analysis.scaling import IMAGES, hours

    lines = [
        "## Hours",
        "",
        "hours = images x epochs / (images per second and GPU x GPUs x 3600); "
        "price = hours x GPUs x price of a GPU hour. "
        f"Here {args.throughput:g} images per second and GPU, {args.epochs} epochs, evaluation not counted"
        + (f", {args.price:g} per GPU hour." if args.price else "."),
        "",
        "| images | GPUs | hours | GPU hours |" + (" price |" if args.price else ""),
        "|---|---:|---:|---:|" + ("---:|" if args.price else ""),
    ]
    for name, images in IMAGES.items():
        for n in args.processes or [1]:
            needed = hours(images, args.epochs, args.throughput, n)
            price = f" {needed * n * args.price:,.0f} |" if args.price else ""
            lines.append(f"| {name}, {images:,} | {n} | {needed:,.1f} | {needed * n:,.0f} |{price}")
    return [*lines, ""]


def as_markdown(rows: list[dict], args: argparse.Namespace, command: str) -> str:
    """The rows as one table for each image size; every cell says it without and with checkpointing."""
    autocast = f"under {args.amp_dtype} autocast" if args.amp else "without autocast"
    lines = [
        "# Memory of a training step",
        "",
        f"Computed from shapes, not measured: `{command}`.",
        "",
        "Counted is what is alive when the backward begins, and the gradients that come then: weights, gradients, "
        "AdamW's two moments and averaged weights in float32, the images, and what the forward keeps of them for the "
        f"backward, {autocast} and with the Triton scan. What an operator needs only while it runs, the teacher of a "
        "distillation, DDP's buckets (once more the gradients) and what the allocator cannot use come on top.",
        "",
        "Each cell is without / with `--grad-checkpointing`; with it, the block whose recomputation takes most is "
        "counted. Memory grows linearly with the batch: fixed + batch x per image.",
        "",
    ]
    columns = [
        "model",
        "fixed (MiB)",
        "per image (MiB)",
        *(f"batch {b} (GiB)" for b in args.batch_size),
        f"largest batch in {args.limit:g} GiB",
    ]
    for size in args.img_size:
        lines += [
            f"## {size} x {size} pixels",
            "",
            f"| {' | '.join(columns)} |",
            "|---|" + "---:|" * (len(columns) - 1),
        ]
        for plain, saving in zip(rows[::2], rows[1::2], strict=True):
            if plain["img_size"] != size:
                continue
            pair = plain, saving
            cells = [
                " / ".join(f"{r['fixed_mib']:.0f}" for r in pair),
                " / ".join(f"{r['per_image_mib']:.1f}" for r in pair),
                *(" / ".join(f"{r['gib'][b]:.1f}" for r in pair) for b in args.batch_size),
                " / ".join(str(r["largest_batch"]) for r in pair),
            ]
            lines.append(f"| `{plain['model']}` | {' | '.join(cells)} |")
        lines.append("")
        if args.processes:
            lines += processes_table([r for r in rows if r["img_size"] == size], args)
    if args.throughput:
        lines += cost_lines(args)
    return "\n".join(lines)


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = command_parser(__name__, __doc__)
    group = parser.add_argument_group("what is computed")
    add_options(group, "model", nargs="+", help="names or patterns of models of this package")
    add_options(group, "img-size", nargs="+", default=[224, 384, 512], help="image heights and widths")
    add_options(group, "batch-size", nargs="+", default=[32, 64, 128], help="images per GPU")
    group.add_argument("--limit", type=float, default=80.0, metavar="GIB", help="memory for the largest batch's column")
    precision = parser.add_argument_group("precision")
    add_options(precision, "amp", "amp-dtype")
    precision.add_argument("--precision", action=FormerChoice, meanings=PRECISIONS)
    group = parser.add_argument_group("several processes, and what they cost")
    add = group.add_argument
    add("--processes", nargs="+", type=int, metavar="N", help="also what each of N processes takes and sends")
    add("--throughput", type=float, metavar="X", help="images per second and GPU, as you measured it: adds the hours")
    add("--epochs", type=int, default=300, metavar="N", help="epochs of these hours")
    add("--price", type=float, metavar="X", help="price of a GPU hour, for what these hours cost")
    parser.add_argument_group("output").add_argument(
        "--output", metavar="FILE", help="write there instead of printing; .json gives rows, any other ending Markdown"
    )
    parser.former_positionals = ["--model"]
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    _check(args)
    rows = []
    for size in args.img_size:
        for name in _names(args.model):
            try:
                rows += [row(name, size, checkpointing, args) for checkpointing in (False, True)]
            except ImportError as error:
                raise UserError(str(error)) from error
            if args.output:
                print(
                    f"{name} at {size} pixels: {rows[-2]['per_image_mib']} MiB per image, "
                    f"{rows[-1]['per_image_mib']} with checkpointing",
                    flush=True,
                )
    command = shlex.join(["python", "tools/memory.py", *(sys.argv[1:] if argv is None else argv)])
    as_json = args.output and Path(args.output).suffix == ".json"
    text = json.dumps(rows, indent=2) + "\n" if as_json else as_markdown(rows, args, command)
    if args.output:
        write_text(args.output, text)
    else:
        print(text)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is computed."""
    if min(args.img_size) < 32 or min(args.batch_size) < 1:
        found = min(args.img_size + args.batch_size)
        raise UserError(f"--img-size takes 32 and more, --batch-size 1 and more; found {found}")
    if min([*(args.processes or [1]), args.epochs, args.throughput or 1, args.price or 1]) <= 0:
        raise UserError("--processes, --epochs, --throughput and --price take values above 0")
    if args.price and not args.throughput:
        raise UserError("--price needs the images per second: give --throughput too")


def _names(patterns: list[str] | None) -> list[str]:
    from .. import list_models

    if not patterns:
        return [name for name in list_models() if not name.startswith("test_")]
    if names := list_models(patterns):
        return names
    raise UserError(f"no model matches {' '.join(patterns)}{nearest(patterns[0], list_models())} (visionssm list)")
