"""Build a small set of sharp photographs from those that come with scikit-image and scikit-learn, without a download.

python tools/prepare_photos.py --output work/photos
python tools/train_restoration.py -c demo --data-dir work/photos --output work/demo-restoration
"""

from ._boundary import bounded
from ._parser import command_parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("--output", required=True, help="folder that receives train and validation")
    args = parser.parse_args(argv)
    from ..digits.photos import write_photos

    counts = write_photos(args.output)
    print(f"{args.output}: {', '.join(f'{count} {split}' for split, count in counts.items())} photographs")
    return 0
