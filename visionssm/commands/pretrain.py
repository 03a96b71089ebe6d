"""Train a backbone without labels: hide cells of images, and find them again (masked image modelling).

python tools/pretrain.py -c vim/vim_tiny --data-dir IMAGENET --output PRE --mixup 0 --cutmix 0
python tools/train.py -c vim/vim_tiny --data-dir IMAGENET --output RUN --pretrained-path PRE/last.pth.tar

MambaMIM (arXiv:2408.08070) in two dimensions: a plain backbone of Mamba's mixer sees the visible tokens alone, a
hierarchical one maps that are 0 at hidden cells at every stage; hidden tokens of the last map are interpolated along
the sequence, and a light decoder regresses the hidden pixels. Recipes, data, resuming, logs and faults are those of
training. The checkpoint's weights are the backbone's, so the second line above fine-tunes it with a new classifier.
"""

import logging

from ..errors import UserError
from ._arguments import parse_args
from ._boundary import bounded
from ._parser import CommandParser

_logger = logging.getLogger(__name__)

_FILLS = ("toki", "token")


def add_options(parser: CommandParser) -> None:
    """Add what pre-training has beside training."""
    add = parser.add_argument_group("masked image modelling").add_argument
    add("--mask-ratio", type=float, default=0.75, metavar="X", help="share of the cells that is hidden")
    add("--cell", type=int, metavar="N", help="side of a cell in pixels; the backbone's largest stride if not given")
    add("--fill", choices=_FILLS, default="toki", help="hidden tokens of the last map: interpolated, or one learned")
    add("--decoder-width", type=int, default=256, metavar="N", help="channels of the decoder at the last map")
    add("--no-gaps", action="store_true", help="scans of plain backbones do not decay over hidden tokens")
    parser.set_defaults(eval_metric="loss")


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 a user's error, 128 + n stopped by signal n."""
    import sys

    args = parse_args(argv, sys.modules[__name__])
    for name, meant in (
        ("mixup", args.mixup),
        ("cutmix", args.cutmix),
        ("kd-model-name", args.kd_model_name),
        ("mesa", args.mesa),
        ("class-weights", args.class_weights),
        ("torchcompile", args.torchcompile),
        ("fsdp", args.fsdp),
    ):
        if meant:
            raise UserError(f"--{name} has no meaning without labels, or is not supported here; leave it out or at 0")
    if args.eval_metric != "loss":
        raise UserError(f"--eval-metric of pre-training is loss, got {args.eval_metric}")
    from ..engine.data import processes
    from ..engine.data.workers import loader_processes_ended
    from ..engine.training.stopping import Interrupted, StopRequest
    from ._training import train

    masking = {
        "mask_ratio": args.mask_ratio,
        "cell": args.cell,
        "fill": args.fill,
        "decoder_width": args.decoder_width,
        "gaps": not args.no_gaps,
    }
    peers_answer = True
    try:
        with StopRequest() as stop, loader_processes_ended():
            train(args, stop, masking)
    except UserError:
        peers_answer = False  # the others may be lost, or wait for this one inside a step
        raise
    except Interrupted as interruption:
        _logger.info("stopped by %s; continue with --resume auto", interruption)
        return interruption.exit_code
    finally:
        processes.stop(peers_answer)
    return 0
