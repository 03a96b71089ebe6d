"""Which samples a process reads, as a function of seed, epoch, rank and position."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler, WeightedRandomSampler

SampleKey = tuple[int, int, int]


class EpochBatches(Sampler[list[SampleKey]]):
    """Training batches of sample keys `(index, epoch, copy)`, shuffled anew in every epoch.

    Every epoch is a pure function of the arguments, so it can be entered at any batch. Without repeats the samples are
    those of torch's DistributedSampler, with repeats those of timm's RepeatAugSampler: copies of a sample stand side by
    side in the shuffled list, so that different processes see them, and an epoch keeps its usual length. The last,
    incomplete batch is dropped.

    Args:
        num_samples: Size of the data set.
        batch_size: Samples per batch and process.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes.
        repeats: Copies of every sample (repeated augmentation, arXiv:1901.09335); 0 or 1 for none.
        weights: Draw the samples of an epoch with replacement by these weights, instead of each once.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 0,
        weights: Sequence[float] | None = None,
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.repeats = max(repeats, 1)
        self.weights = weights
        self.epoch = 0
        self.first_batch = 0

    def start_at(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch of the next iteration and the batch it begins with."""
        self.epoch = epoch
        self.first_batch = first_batch

    def __len__(self) -> int:
        """Return the batches of a whole epoch."""
        return self._samples_per_process() // self.batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.weights is None:
            order = torch.randperm(self.num_samples, generator=generator).tolist()
        else:
            order = list(WeightedRandomSampler(self.weights, self.num_samples, generator=generator))
        total = len(order) * self.repeats
        for batch in range(self.first_batch, len(self)):
            keys = []
            for place in range(batch * self.batch_size, (batch + 1) * self.batch_size):
                position = (place * self.world_size + self.rank) % total  # wraps so that all processes have as many
                keys.append((order[position // self.repeats], self.epoch, position % self.repeats))
            yield keys

    def _samples_per_process(self) -> int:
        if self.repeats == 1:
            return -(-self.num_samples // self.world_size)
        if self.num_samples >= 256:  # RepeatAugSampler rounds large sets down to a multiple of 256
            return self.num_samples // 256 * 256 // self.world_size
        return -(-self.num_samples // self.world_size)


class EvaluationIndices(Sampler[int]):
    """All samples in order, split over the processes without repeating any."""

    def __init__(self, num_samples: int, *, rank: int = 0, world_size: int = 1):
        self.indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
