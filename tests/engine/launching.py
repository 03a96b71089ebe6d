"""Training runs of several processes, forked from one that has everything imported already.

Not from this one: autograd's threads, which earlier tests may have started, do not survive a fork.
"""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from conftest import BASE
from forked import run as run_forked

from visionssm.commands import train

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["visionssm.commands._training", "visionssm.commands.train"])


def flags(**options) -> list[str]:
    """The options of a short training run as a command line."""
    options = BASE | {name.replace("_", "-"): value for name, value in options.items()}
    return [
        text
        for name, value in options.items()
        if value is not False
        for text in (f"--{name}", *([] if value is True else [str(value)]))
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """The processes of one run, as torchrun would start them.

    Args:
        argv: Command line of the training.
        size: How many.
        console: File that each one's output is added to, with its number behind the name.
        run: A function of a module that they run instead of the training command.
        environment: Further variables.
    """

    def __init__(
        self,
        argv: list[str],
        size: int,
        console: Path,
        run: Callable[[list[str]], int] | None = None,
        **environment: str,
    ):
        port = str(free_port())
        self.console = console
        run = run or train.main
        self.processes = []
        for rank in range(size):
            variables = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
            variables |= dict(MASTER_PORT=port, MASTER_ADDR="127.0.0.1", **environment)
            what = run.__module__, run.__name__, argv, f"{console}.{rank}", os.environ | variables
            self.processes.append(SERVER.Process(target=run_forked, args=what))
        for process in self.processes:
            process.start()

    @property
    def codes(self) -> dict[int, int]:
        """Exit codes of those that have ended, by rank; negative for a signal."""
        codes = {rank: process.exitcode for rank, process in enumerate(self.processes)}
        return {rank: code for rank, code in codes.items() if code is not None}

    def text(self, rank: int = 0) -> str:
        """What a process has written."""
        path = Path(f"{self.console}.{rank}")
        return path.read_text() if path.exists() else ""

    def ended(self) -> bool:
        """Whether any has ended."""
        return bool(self.codes)

    def until(self, condition: Callable[[], bool], seconds: float = 600.0) -> None:
        """Wait for something to happen in the run."""
        end = time.monotonic() + seconds
        while not condition():
            if self.ended() or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"it did not happen; {self.codes}\n{self.text()}")
            time.sleep(0.002)

    def wait(self, seconds: float = 900.0) -> list[int]:
        """Wait for all; return their exit codes."""
        end = time.monotonic() + seconds
        while len(self.codes) < len(self.processes):
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"still running: {self.codes}\n{self.text()}")
            time.sleep(0.01)
        return list(self.codes.values())

    def send(self, rank: int, number: int) -> None:
        process = self.processes[rank].pid
        if process is not None and rank not in self.codes:
            os.kill(process, number)

    def kill(self) -> None:
        """End all at once, as a node that loses power."""
        for rank in range(len(self.processes)):
            self.send(rank, signal.SIGKILL)
        for process in self.processes:
            process.join()


def run_all(argv: list[str], size: int, console: Path, **environment: str) -> None:
    """Run to the end and expect success."""
    processes = Processes(argv, size, console, None, **environment)
    codes = processes.wait()
    assert codes == [0] * size, "\n".join(processes.text(rank) for rank in range(size))
