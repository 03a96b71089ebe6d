"""Writing files so that a reader sees the old content or the new one, never a part."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: str | os.PathLike, suffix: str = ".tmp") -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends, and vanishes when the block raises.

    Args:
        path: Target file; its folder is created when missing.
        suffix: Ending of the temporary file's name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=suffix)
    try:
        os.close(handle)
        yield Path(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def replacing_pair(path: str | os.PathLike, companion: str | os.PathLike) -> Iterator[tuple[Path, Path]]:
    """Like `replacing`, of two files beside each other, of which the first refers to the second by its name.

    They are written into a temporary folder, under their own names. A reader sees the old pair, the new one, or no
    first file.

    Args:
        path: Target of the first file; its folder is created when missing.
        companion: Target of the second, in the same folder.
    """
    path, companion = Path(path), Path(companion)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder, path.name), Path(folder, companion.name)
        yield written
        for file in written:
            with open(file, "rb+") as stream:
                os.fsync(stream.fileno())
            os.chmod(file, 0o666 & ~_umask())
        path.unlink(missing_ok=True)
        os.replace(written[1], companion)
        os.replace(written[0], path)
    sync_folder(path.parent)


def write_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], object]) -> None:
    """Create or replace a file: write beside it, fsync, rename.

    Args:
        path: Target file; its folder is created when missing.
        write: Called with the open binary file; what it raises reaches the caller, and the target stays as it was.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(file)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Create or replace a UTF-8 text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def sync_folder(folder: str | os.PathLike) -> None:
    """Make renames in a folder durable, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync folders; the rename itself has happened
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def shipped(folder: str) -> Path:
    """Return a folder of the repository, `configs` or `model_cards`, that a wheel carries inside the package."""
    package = Path(__file__).resolve().parent
    inside = package / "shipped" / folder
    return inside if inside.is_dir() else package.parent / folder
