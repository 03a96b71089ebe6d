"""Loader processes: their errors as one sentence, their deaths, and their end."""

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from types import FrameType
from typing import Any

from ...errors import UserError


class LoaderProcessError(UserError):
    """A loader process died; batches it had to bring are lost."""


class ExplainedLoader:
    """A loader whose errors are sentences."""

    def __init__(self, loader: Any):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return explained(self.loader)


def explained(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield from a loader, giving errors of its processes as one sentence, and only when the next batch is asked for.

    Raises:
        LoaderProcessError: A loader process died.
        UserError: An image cannot be read.
    """
    try:
        iterator = iter(loader)
        with _DeathsNoted() as deaths:
            while True:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if "DataLoader worker" in str(error) and deaths.first is not None:
                        raise deaths.first from error  # it knows the signal
                    raise
                except (ConnectionError, EOFError) as error:  # the process died while it handed over a batch
                    if (death := deaths.awaited()) is not None:
                        raise death from error
                    raise
                deaths.install()
                yield batch
    except UserError as error:
        # torch puts the worker's traceback into the message; its last line is "package.Error: sentence"
        text = str(error)
        if "Original Traceback" not in text:
            raise
        raise type(error)(text.strip().splitlines()[-1].split(": ", 1)[1]) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = " ".join(str(error).split())
        raise LoaderProcessError(
            f"a loader process died (killed from outside, often for lack of memory: {reason})"
        ) from error


@contextmanager
def loader_processes_ended() -> Iterator[None]:
    """Leave no loader process behind.

    torch ends them when their loader is forgotten, which an error can delay until the interpreter ends; that would wait
    for them forever, since they ignore SIGTERM.
    """
    before = set(active_children())
    try:
        yield
    finally:
        left = set(active_children()) - before
        in_main = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main and left else None  # torch's would raise
        for process in left:
            process.kill()
            process.join()
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def ignore_signals(worker: int) -> None:
    """Let a loader process outlive a signal to the whole process group, as a terminal or a scheduler sends it.

    The training process finishes its step and stores a checkpoint, for which it needs its workers; they end with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _DeathsNoted:
    """Notes dead loader processes while batches are read.

    torch's handler of SIGCHLD raises wherever the process happens to be, in the middle of writing a checkpoint too. Its
    error is kept instead: the loader, which looks after its processes itself, misses the batch soon enough.
    """

    def __init__(self) -> None:
        self.first: RuntimeError | None = None
        self._torchs: Any = None

    def __enter__(self) -> "_DeathsNoted":
        self.install()
        return self

    def install(self) -> None:
        """Stand before torch's handler, which is set when the first processes start: now or with the first batch."""
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._note and threading.current_thread() is threading.main_thread():
            self._torchs = handler
            signal.signal(signal.SIGCHLD, self._note)

    def __exit__(self, *_: object) -> None:
        if self._torchs is not None and signal.getsignal(signal.SIGCHLD) == self._note:
            signal.signal(signal.SIGCHLD, self._torchs)

    def awaited(self, seconds: float = 5.0) -> RuntimeError | None:
        """The first death; a dying process closes its connections before its parent hears of it."""
        end = time.monotonic() + seconds
        while self._torchs is not None and self.first is None and time.monotonic() < end:
            time.sleep(0.01)  # the signal arrives here
        return self.first

    def _note(self, number: int, frame: FrameType | None) -> None:
        try:
            self._torchs(number, frame)
        except RuntimeError as error:
            self.first = self.first or error
