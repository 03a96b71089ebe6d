"""Write an image folder as WebDataset shards, count existing ones, or verify them.

python tools/shards.py --data-dir work/digits --output work/shards --megabytes 1
python tools/shards.py --verify work/shards --data-dir work/digits

A shard is a tar file of images beside their labels; `_info.json` lists them with their lengths. Training reads them
with --dataset wds/NAME --data-dir FOLDER, from a disk or from any URL that webdataset opens.
"""

import sys
import time
from pathlib import Path

from ..errors import UserError
from ._boundary import bounded
from ._parser import CommandParser, command_parser
from ._vocabulary import add_options


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = command_parser(
        __name__,
        __doc__,
        usage="visionssm shards (--data-dir DIR --output DIR | --index FOLDER | --verify FOLDER) [options]",
    )
    add = parser.add_argument
    add_options(
        parser, "data-dir", help="image folder with its splits inside; with --verify: compare with it, byte by byte"
    )
    add("--output", metavar="DIR", help="where to write")
    add("--index", metavar="FOLDER", help="count the samples of the tar files there and list them in _info.json")
    add("--verify", metavar="FOLDER", help="read all shards there: lengths, images, labels")
    add("--split", nargs="+", metavar="NAME", help="splits; train and validation, or all that are listed")
    add("--megabytes", type=float, default=256.0, metavar="X", help="size of a shard in 10^6 bytes")
    add_options(parser, "seed", help="seed of the order")
    add_options(parser, "in-chans", default=3, help="channels that --verify decodes to")
    add("--overwrite", action="store_true", help="replace shards of the same splits")
    parser.former["--source"] = "--data-dir"
    parser.former_positionals = ["--data-dir", "--output"]
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; 1 where verification found something."""
    args = build_parser().parse_args(argv)
    writes = bool(args.data_dir and args.output)
    if [writes, bool(args.index), bool(args.verify)].count(True) != 1:
        raise UserError("give --data-dir, an image folder, and --output, or --index FOLDER, or --verify FOLDER")
    if args.megabytes <= 0:
        raise UserError(f"--megabytes must be more than 0, got {args.megabytes:g}")
    if args.index:
        return index(Path(args.index), args.split)
    if args.verify:
        return verify(Path(args.verify), args.data_dir, args.split, args.in_chans)
    return write(
        args.data_dir,
        Path(args.output),
        args.split or ["train", "validation"],
        args.megabytes,
        args.seed,
        args.overwrite,
    )


def write(source: str, output: Path, splits: list[str], megabytes: float, seed: int, overwrite: bool) -> int:
    """Write the splits of an image folder."""
    from ..engine.data.shard_writing import images_of, write_info, write_split

    images, classes = images_of(source, splits)
    output.mkdir(parents=True, exist_ok=True)
    for split in splits:
        present = sorted(output.glob(f"{split}-*.tar"))
        if present and not overwrite:
            raise UserError(f"{output} already holds {present[0].name}; choose another folder or give --overwrite")
        for path in present:
            path.unlink()
        total, done, started = len(images[split]), 0, time.perf_counter()

        def on_shard(name: str, count: int, size: int, total: int = total, started: float = started) -> None:
            nonlocal done
            done += count
            rate = done / (time.perf_counter() - started)
            print(f"{name}: {count} images, {size / 1e6:.1f} MB; {done} of {total}, {rate:.0f} img/s", flush=True)

        shards = write_split(images[split], output, split, megabytes=megabytes, seed=seed, on_shard=on_shard)
        write_info(output, {split: shards}, classes)  # after each, so that a split is listed when it is whole
    total = sum(map(len, images.values()))
    print(f"{output}: {total} images of {len(classes)} classes; read them with --dataset wds/NAME")
    return 0


def index(folder: Path, splits: list[str] | None) -> int:
    """List the tar files of a folder."""
    from ..engine.data.shard_writing import count_samples, find_shards, write_info

    found = find_shards(folder)
    unknown = sorted(set(splits or ()) - set(found))
    if unknown:
        raise UserError(f"{folder} has no shards of {', '.join(unknown)}; it has {', '.join(found)}")
    listed: dict[str, list] = {}
    for split in splits or list(found):
        listed[split] = []
        for name in found[split]:
            listed[split].append((name, count_samples(str(folder / name))))
            print(f"{name}: {listed[split][-1][1]} samples", flush=True)
    write_info(folder, listed, None)
    return 0


def verify(folder: Path, source: str | None, splits: list[str] | None, channels: int) -> int:
    """Read the shards again and say what is wrong."""
    from ..engine.data.images import ImageReader
    from ..engine.data.shard_writing import images_of, read_info
    from ..engine.data.shard_writing import verify as read_again

    splits = splits or list(read_info(folder)["splits"])
    images = images_of(source, splits)[0] if source else {}
    wrong = total = 0
    for split in splits:
        for name, count, problem in read_again(folder, split, images.get(split), ImageReader(channels)):
            total += count
            wrong += problem is not None
            print(f"{name}: {f'{count} samples' if problem is None else problem}", flush=True)
    print(f"{folder}: {total} samples, {wrong} shard(s) with mistakes", file=sys.stderr if wrong else sys.stdout)
    return 1 if wrong else 0
