"""Draw pictures of what the models do.

python tools/visualize.py scans --order cross snake window7_flip -o three.png
python tools/visualize.py scans --order all -o FOLDER
python tools/visualize.py erf --model vmamba_tiny_s1l8 resnet50 --pretrained --data-dir IMAGENET -o erf.png
python tools/visualize.py attention IMAGE --checkpoint last.pth.tar --layer stages.2.blocks.0.mixer --token 1 1 -o a.png
python tools/visualize.py contributions IMAGE --model vim_tiny --pretrained --layer blocks.12 -o contributions.png
python tools/visualize.py relevance IMAGE --checkpoint last.pth.tar -o relevance.png
python tools/visualize.py features IMAGE --model vmamba_tiny_s1l8 --pretrained -o features.png
python tools/visualize.py activations IMAGE --model vmamba_tiny_s1l8 --half -o activations.png
python tools/visualize.py dynamics IMAGE --model vim_tiny --pretrained -o dynamics.png

Each command explains its options: python tools/visualize.py erf --help.
"""

from . import (
    _visualize_activations,
    _visualize_dynamics,
    _visualize_erf,
    _visualize_features,
    _visualize_relevance,
    _visualize_scans,
    _visualize_tokens,
)
from ._boundary import bounded
from ._parser import CommandParser, command_parser


def build_parser() -> CommandParser:
    """Return the parser of the command, which has a command for each kind of picture."""
    parser = command_parser(__name__, __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _visualize_scans.add_scans,
        _visualize_erf.add_erf,
        _visualize_tokens.add_attention,
        _visualize_tokens.add_contributions,
        _visualize_relevance.add_relevance,
        _visualize_features.add_features,
        _visualize_activations.add_activations,
        _visualize_dynamics.add_dynamics,
    ):
        add(commands)
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    args.run(args)
    return 0
