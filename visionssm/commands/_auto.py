"""What `auto` stands for: numbers that follow from the machine and from how many images there are."""

import os

from ..errors import UserError

SEEN = 20_000  # images that `--epochs auto` aims to show, all epochs together
UPDATES = 20  # of an epoch, which `--batch-size auto` keeps


def workers(asked: int | str) -> int:
    """Return the number of loader processes: as asked for, or one per core that this process may use, at most 4."""
    if asked != "auto":
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4)


def batch_size(asked: int | str, images: int | None, processes: int = 1) -> int:
    """Return the images of a batch: as asked for, or a power of two from 4 to 64 that leaves 20 updates in an epoch.

    Args:
        asked: A number or "auto".
        images: Of the training split; None where a stream does not tell.
        processes: That share an epoch.

    Raises:
        UserError: "auto" for a stream.
    """
    if asked != "auto":
        return int(asked)
    share = _counted(images, "--batch-size") // (processes * UPDATES)
    size = 4
    while size * 2 <= min(share, 64):
        size *= 2
    return size


def epochs(asked: int | str, images: int | None) -> int:
    """Return the epochs: as asked for, or from 50 for few images to 10 for 2000 and more.

    Raises:
        UserError: "auto" for a stream.
    """
    if asked != "auto":
        return int(asked)
    return min(max(round(SEEN / max(_counted(images, "--epochs"), 1)), 10), 50)


def _counted(images: int | None, option: str) -> int:
    if images is None:
        raise UserError(f"{option} auto counts images, and a streamed data set does not tell how many; give a number")
    return images
