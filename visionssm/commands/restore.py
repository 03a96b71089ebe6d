"""Restore image files: enlarge, denoise or clean them with a restoration model, and measure how well.

python tools/restore.py photos --checkpoint work/demo-restoration/last.pth.tar --output restored
python tools/restore.py Set5/LRbicx2 --model mambair_sr --model-kwargs scale=2 --checkpoint authors.pth \\
    --references Set5/GTmod12 --output restored

PSNR and SSIM are taken when the truth is known: --references names sharp images of the same file names, and with
--degradation the images given are the sharp ones, which are made worse first.
"""

from ._boundary import bounded
from ._parser import CommandParser, command_parser
from ._vocabulary import add_options


def build_parser() -> CommandParser:
    """Return the parser of the restoration command."""
    parser = command_parser(
        __name__, __doc__, usage="visionssm restore IMAGE [IMAGE ...] --checkpoint FILE --output DIR [options]"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders of them")
    add = parser.add_argument_group("restoration").add_argument
    add("--output", metavar="DIR", required=True, help="folder that receives a PNG file for each image")
    add("--tile", type=int, default=256, metavar="N", help="sides of tiles that larger images are cut into; 0 for none")
    add("--overlap", type=int, default=16, metavar="N", help="pixels that neighbouring tiles share")
    group = parser.add_argument_group("model; a run's checkpoint says all of it, and an option overrides that")
    add_options(group, "model", help="a name of visionssm.restoration.list_models")
    add_options(group, "model-kwargs")
    add_options(group, "checkpoint", required=True)
    add_options(group, "weights")
    add_options(parser.add_argument_group("device and precision"), "device", "amp", "amp-dtype")
    truth = parser.add_argument_group("truth, for PSNR and SSIM")
    truth.add_argument("--references", nargs="+", metavar="IMAGE", help="sharp images or folders of them")
    truth.add_argument("--degradation", metavar="HOW", help="bicubic, noise=25 or jpeg=10: make the images worse first")
    truth.add_argument("--space", choices=("y", "rgb"), default="y", help="compare luma, or all channels")
    truth.add_argument("--picture", metavar="PNG", help="picture of some images: before, after, truth")
    add_options(truth, "results-file", "results-format")
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the restoration command and return its exit code."""
    args = build_parser().parse_args(argv)
    from ..engine.reports.progress import setup_logging
    from ._restoring import restore

    setup_logging()
    restore(args)
    return 0
