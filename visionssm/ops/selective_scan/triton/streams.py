"""Tensors that are made on one stream of a GPU, kept, and read on others."""

from collections.abc import Iterable

import torch
from torch import Tensor


def capturing(device: torch.device) -> bool:
    """Whether work for the device is being captured in a graph, not run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


_in_graphs: dict[int, Tensor] = {}  # a graph reads them for as long as it is replayed, and nobody says when it is not


class Shared:
    """Orders the reads of kept tensors after their making, and their memory's reuse after the reads.

    Made right after the work that fills the tensors was given to the current stream; `use` comes before every read.
    Tensors read by a graph that is being captured are never freed.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = tuple(tensors)
        self.device = self.tensors[0].device
        self.made: torch.cuda.Event | None = None
        self.streams: set[int] = set()
        if self.device.type == "cuda" and not capturing(self.device):
            stream = torch.cuda.current_stream(self.device)
            self.made = torch.cuda.Event()
            self.made.record(stream)
            self.streams.add(stream.cuda_stream)

    def use(self) -> None:
        """Have the current stream wait for the tensors if it must, and the allocator know that it reads them."""
        if self.device.type != "cuda":
            return
        if capturing(self.device):  # before a capture begins the device is waited for
            _in_graphs.update((id(tensor), tensor) for tensor in self.tensors)
            return
        stream = torch.cuda.current_stream(self.device)
        if stream.cuda_stream in self.streams:
            return
        self.streams.add(stream.cuda_stream)
        if self.made is not None:
            stream.wait_event(self.made)
        for tensor in self.tensors:
            tensor.record_stream(stream)
