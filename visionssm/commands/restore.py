"""Restore image files: enlarge, denoise or clean them with a restoration model, and measure how well.

python tools/restore.py photos --checkpoint work/demo-restoration/last.pth.tar --output restored
python tools/restore.py Set5/LRbicx2 --model mambair_sr --model-kwargs scale=2 --checkpoint authors.pth \\
    --references Set5/GTmod12 --output restored

PSNR and SSIM are taken when the truth is known: --references names sharp images of the same file names, and with
--degradation the images given are the sharp ones, which are made worse first.
"""

from ._boundary import bounded
from ._inference_options import WEIGHTS
from ._parser import CommandParser, KeyValues, command_parser


def build_parser() -> CommandParser:
    """Return the parser of the restoration command."""
    parser = command_parser(
        __name__, __doc__, usage="visionssm restore IMAGE [IMAGE ...] --checkpoint FILE --output DIR [options]"
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files or folders of them")
    add("--output", metavar="DIR", required=True, help="folder that receives a PNG file for each image")
    add(
        "--model", metavar="NAME", help="a name of visionssm.restoration.list_models; a run's checkpoint says it itself"
    )
    add("--model-kwargs", nargs="*", default={}, action=KeyValues, metavar="KEY=VALUE", help="constructor arguments")
    add("--checkpoint", metavar="FILE", required=True, help="checkpoint of a run or an author's weight file")
    add(
        "--weights",
        choices=WEIGHTS,
        default="auto",
        help="which weights of the file; auto takes the averaged ones where there are any",
    )
    add("--device", default="auto", metavar="NAME", help="cuda, cpu, ...; auto takes the GPU when there is one")
    add("--amp", action="store_true", help="mixed precision")
    add("--amp-dtype", choices=("float16", "bfloat16"), default="float16", help="lower precision of AMP")
    add(
        "--tile", type=int, default=256, metavar="N", help="restore larger images by tiles of N x N; 0 for whole images"
    )
    add("--overlap", type=int, default=16, metavar="N", help="pixels that neighbouring tiles share")
    truth = parser.add_argument_group("truth, for PSNR and SSIM")
    truth.add_argument("--references", nargs="+", metavar="IMAGE", help="sharp images or folders of them")
    truth.add_argument("--degradation", metavar="HOW", help="bicubic, noise=25 or jpeg=10: make the images worse first")
    truth.add_argument("--space", choices=("y", "rgb"), default="y", help="compare luma, or all channels")
    truth.add_argument("--csv", metavar="FILE", help="the figures of all images as CSV")
    truth.add_argument("--picture", metavar="PNG", help="picture of some images: before, after, truth")
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
