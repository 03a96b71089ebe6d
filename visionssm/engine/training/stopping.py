"""Stopping a run from outside without losing work."""

import signal
from types import FrameType
from typing import Any

from ..data.processes import World, any_process


class Interrupted(Exception):
    """The run was asked to stop; its state has been stored."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class StopRequest:
    """Turns SIGTERM and SIGINT into a flag that is read between updates; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        signal.signal(number, signal.SIG_DFL)

    def interruption(self) -> Interrupted:
        """Return what ends a run that agreed to stop."""
        return Interrupted(self.signal_number or signal.SIGTERM)

    def agreed(self, world: World, device) -> bool:
        """Return whether any process was asked to stop; all processes have to call this at the same place."""
        if not any_process(self.signal_number is not None, world, device):
            return False
        self.signal_number = self.signal_number or signal.SIGTERM
        return True
