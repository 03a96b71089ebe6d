"""Train a restoration model on sharp images, with their degraded forms from a folder or generated.

python tools/train_restoration.py -c mambair_light_x2 --data-dir DIV2K --output work/light_x2
python tools/train_restoration.py --model mambair_dn --degradation noise=25 --data-dir photos --output work/dn25

DIR/train and DIR/validation hold sharp images, for --degradation; or each of them a folder `target` of sharp images and
a folder `input` of degraded ones of the same names ("x2" may follow the name in super-resolution). An interrupted run
goes on with --resume auto as if it had not been. Options keep the names and meanings of train.py; a recipe may hold any
of them.
"""

import logging

from ..errors import UserError
from ._arguments import add_device, add_ema, add_optimizer, add_run, add_schedule
from ._boundary import bounded
from ._parser import CommandParser, command_parser
from ._recipes import apply_recipe
from ._vocabulary import add_options

_logger = logging.getLogger(__name__)


def build_parser() -> CommandParser:
    """Return the parser of the command; its defaults are MambaIR's training (arXiv:2402.15648)."""
    parser = command_parser(
        __name__,
        __doc__,
        usage="visionssm train-restoration --model NAME --data-dir DIR --output DIR [--resume auto] [options]",
    )
    parser.add_argument("-c", "--config", metavar="RECIPE", help="recipe below the command line, by name or file")
    group = parser.add_argument_group("data")
    add_options(group, "data-dir", help="folder with train and validation inside")
    add_options(group, "batch-size", default=32, help="patches per step and process")
    add_options(group, "workers")
    add = group.add_argument
    add("--degradation", metavar="HOW", help="bicubic, noise=25 or jpeg=10; pairs from folders when not given")
    add("--patch-size", type=int, default=64, metavar="N", help="sides of the degraded patches")
    add("--epoch-steps", type=int, default=1000, metavar="N", help="steps that count as an epoch")
    add("--space", choices=("y", "rgb"), default="y", help="evaluate luma, or all channels")
    group = parser.add_argument_group("model and loss")
    add_options(group, "model", default="mambair_light", help="a name of visionssm.restoration.list_models")
    add_options(group, "model-kwargs", "grad-checkpointing")
    add = group.add_argument
    add("--initial-checkpoint", metavar="PATH", default="", help="start from these weights, of a run or an author")
    add("--loss", choices=("l1", "charbonnier", "mse"), default="l1", help="what is minimised")
    add("--grad-accum-steps", type=int, default=1, metavar="N", help="steps per optimizer update")
    add_device(parser.add_argument_group("device and precision"))
    add_optimizer(parser.add_argument_group("optimizer"))
    add_schedule(parser.add_argument_group("learning rate schedule"))
    add_ema(parser.add_argument_group("weight averaging"))
    add_run(parser.add_argument_group("run"), ("psnr", "ssim", "loss"))
    parser.set_defaults(opt="adam", opt_betas=[0.9, 0.99], weight_decay=0.0, lr=2e-4, sched="multistep", epochs=500)
    parser.set_defaults(decay_milestones=[250, 400, 450, 475], decay_rate=0.5, warmup_epochs=0, model_ema_decay=0.999)
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 a user's error, 128 + n stopped by signal n."""
    parser = build_parser()
    if recipe := parser.parse_known_args(argv)[0].config:
        apply_recipe(parser, recipe, "restoration")
    args = parser.parse_args(argv)
    from ..engine.data import processes
    from ..engine.data.workers import loader_processes_ended
    from ..engine.training.stopping import Interrupted, StopRequest
    from ._restoration_training import train

    peers_answer = True
    try:
        with StopRequest() as stop, loader_processes_ended():
            train(args, stop)
    except UserError:
        peers_answer = False  # the others may be lost, or wait for this one inside a step
        raise
    except Interrupted as interruption:
        _logger.info("stopped by %s; continue with --resume auto", interruption)
        return interruption.exit_code
    finally:
        processes.stop(peers_answer)
    return 0
