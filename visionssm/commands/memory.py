"""Compute the GPU memory of a training step from shapes, by model, image size and batch size.

python tools/memory.py 'vmamba_*' --img-size 224 384 --batch-size 64 128
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from .. import list_models
from ..analysis.memory import PRECISIONS, TrainingMemory, training_memory
from ..files import write_text
from ._help import HelpFormatter

GIB, MIB = 2**30, 2**20


def row(name: str, size: int, checkpointing: bool, args: argparse.Namespace) -> dict:
    """What one setting takes, in MiB and GiB."""
    memory: TrainingMemory = training_memory(name, size, precision=args.precision, checkpointing=checkpointing)
    return {
        "model": name,
        "img_size": size,
        "precision": args.precision,
        "checkpointing": checkpointing,
        "fixed_mib": round((memory.state + memory.shared) / MIB, 1),
        "per_image_mib": round(memory.per_image / MIB, 2),
        "gib": {batch: round(memory.total(batch) / GIB, 2) for batch in args.batch_size},
        "largest_batch": memory.largest_batch(int(args.limit * GIB)),
    }


def as_markdown(rows: list[dict], args: argparse.Namespace, command: str) -> str:
    """The rows as one table for each image size; every cell says it without and with checkpointing."""
    autocast = "without autocast" if args.precision == "float32" else f"under {args.precision} autocast"
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
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    add = parser.add_argument
    add("models", nargs="*", metavar="PATTERN", help="names of models; all published variants if none is given")
    add("--img-size", nargs="+", type=int, default=[224, 384, 512], metavar="N", help="image heights and widths")
    add("-b", "--batch-size", nargs="+", type=int, default=[32, 64, 128], metavar="N", help="images per GPU")
    add("--precision", choices=list(PRECISIONS), default="bfloat16", help="float32, or autocast's lower precision")
    add("--limit", type=float, default=80.0, metavar="GIB", help="memory for the column of the largest batch")
    add("--output", metavar="FILE", help="write there instead of printing; .json gives rows, any other ending Markdown")
    args = parser.parse_args(argv)
    names = list_models(args.models or ["*"])
    if not args.models:
        names = [name for name in names if not name.startswith("test_")]
    if not names:
        print(f"no model matches {' '.join(args.models)}; known: {', '.join(list_models())}", file=sys.stderr)
        return 2
    small = min(args.img_size + args.batch_size)
    if small < 1 or min(args.img_size) < 32:
        print(f"--img-size takes 32 and more, --batch-size 1 and more; found {small}", file=sys.stderr)
        return 2
    rows = []
    for size in args.img_size:
        for name in names:
            try:
                rows += [row(name, size, checkpointing, args) for checkpointing in (False, True)]
            except ImportError as error:
                print(f"memory: {error}", file=sys.stderr)
                return 2
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
