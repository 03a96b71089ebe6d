"""What training on several processes takes: memory of each, bytes over the network, hours. Computed, not measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from .memory import TrainingMemory

IMAGES = {"ImageNet-1K": 1_281_167, "ImageNet-21K": 14_197_122}  # training images; the second is the release of 2011


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's float32 weights, and how FSDP2 gathers them.

    Attributes:
        total: All weights.
        root: Those of no unit, which stay gathered for the length of a step.
        largest_unit: Of the largest unit that is gathered while it runs.
        buffers: Buffers and their averages, which every process holds whole.
    """

    total: int
    root: int
    largest_unit: int
    buffers: int

    def ddp_memory(self, memory: TrainingMemory, batch: int) -> int:
        """Bytes of a DDP process: those of one process alone, and the buckets in which gradients travel."""
        return memory.total(batch) + self.total

    def fsdp_memory(self, memory: TrainingMemory, batch: int, processes: int) -> int:
        """Bytes of an FSDP2 process.

        Its share of weights, gradients, moments and averages; the root's weights and gradients; of the largest unit the
        weights while the next one's arrive, the gradients, and what of them is being sent; its activations.
        """
        shared_out = (memory.state - self.buffers) // processes
        gathered = 2 * self.root + 4 * self.largest_unit
        return shared_out + gathered + self.buffers + memory.shared + batch * memory.per_image

    def ddp_traffic(self, processes: int) -> int:
        """Bytes that a process sends in an update: gradients, all-reduced in a ring (Patarasuk and Yuan, 2009)."""
        return 2 * self.total * (processes - 1) // processes

    def fsdp_traffic(self, processes: int) -> int:
        """Bytes that a process sends in a step.

        Weights are gathered in the forward, the units' once more in the backward, and gradients are reduce-scattered.
        """
        return (3 * self.total - self.root) * (processes - 1) // processes


def weights_of(model: nn.Module, units: Sequence[str]) -> Weights:
    """Return what travels of a model that is gathered in units, which are names of its modules."""

    def size(module: nn.Module) -> int:
        return 4 * sum(p.numel() for p in module.parameters())

    sizes = [size(model.get_submodule(name)) for name in units]
    buffers = 2 * sum(b.numel() * b.element_size() for b in model.buffers())
    return Weights(size(model), size(model) - sum(sizes), max(sizes, default=0), buffers)


def hours(images: int, epochs: int, images_per_second: float, processes: int) -> float:
    """Hours of a training, without evaluation: images x epochs / (images per second and process x processes)."""
    return images * epochs / (images_per_second * processes) / 3600
