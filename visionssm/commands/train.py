"""Train an image classifier.

python tools/train.py -c vmamba_tiny_s1l8 --data-dir IMAGENET --output RUN --resume auto
python tools/train.py -c digits/test_vmamba --data-dir work/digits --output work/demo --overwrite

Options keep the names and meanings of timm's train.py; a recipe may hold any of them, and the command line overrides
it.
"""

import logging

from ..errors import UserError
from ._arguments import parse_args
from ._boundary import bounded

_logger = logging.getLogger(__name__)


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the training command and return its exit code: 0 done, 2 a user's error, 128 + n stopped by signal n."""
    args = parse_args(argv)
    from ..engine.data import processes
    from ..engine.data.workers import loader_processes_ended
    from ..engine.training.stopping import Interrupted, StopRequest
    from ._training import train

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
