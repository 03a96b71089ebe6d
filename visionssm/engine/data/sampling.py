"""Which samples a process reads, as a function of seed, epoch, rank and position."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import Sampler, WeightedRandomSampler

SampleKey = tuple[int, int, int]


class Address(NamedTuple):
    """A sample of a stream: its place in a window of samples that follow each other in the stream.

    Attributes:
        epoch: Epoch, which decides the order; -1 for the stream's own.
        lane: Whose window it is; a lane's windows follow each other.
        lanes: How many lanes there are.
        first: Place of the window's first sample in the stream, or in the lane where those have streams of their own.
        samples: How many the window has.
        place: Of the sample, after the window has been permuted.
    """

    epoch: int
    lane: int
    lanes: int
    first: int
    samples: int
    place: int


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


class StreamBatches(Sampler[list[Address]]):
    """Training batches of a stream, every one of them a function of the arguments, the epoch and its number.

    An epoch is dealt out in pieces that follow each other in the stream: to the processes, and of a process's piece to
    lanes, whose batches it takes in turn. With as many lanes as loader processes each of these reads one piece, in
    windows. Every sample comes once, but for those at the end of the epoch's order that fill no step; these are others
    in every epoch.

    A run that continues on other processes, with as many images per step, keeps the pieces that it began with: see
    `adopt`.

    Args:
        num_samples: Samples of an epoch.
        batch_size: Samples per batch and process.
        rank: Number of this process.
        world_size: Number of processes.
        lanes: Pieces of a process; as many as it has loader processes.
        window: Samples that are permuted together.
        relative: Lanes have streams of their own.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        lanes: int = 1,
        window: int = 1024,
        relative: bool = False,
    ):
        self.num_samples, self.batch_size, self.rank, self.world_size = num_samples, batch_size, rank, world_size
        self.processes, self.lanes = world_size, lanes
        self.window, self.relative = window, relative
        self.epoch = 0
        self.first_batch = 0

    def layout(self) -> dict[str, int]:
        """Return what a continued run has to adopt."""
        return {"processes": self.processes, "lanes": self.lanes, "window": self.window}

    def adopt(self, layout: dict[str, int], images_per_step: int) -> None:
        """Deal out epochs as an earlier run did that had so many images per step."""
        self.lanes, self.window = layout["lanes"], layout["window"]
        if images_per_step == self.batch_size * self.world_size:
            self.processes = layout["processes"]

    def start_at(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch of the next iteration and the batch it begins with."""
        self.epoch = epoch
        self.first_batch = first_batch

    def __len__(self) -> int:
        """Return the batches of a whole epoch."""
        return self.num_samples // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Address]]:
        per_process = self.batch_size * self.world_size // self.processes
        for step in range(self.first_batch, len(self)):
            slots = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
            yield [self._address(step, *divmod(slot, per_process), per_process) for slot in slots]

    def _address(self, step: int, process: int, index: int, per_process: int) -> Address:
        turn, lane = divmod(step, self.lanes)
        steps = len(self)
        sizes = [len(range(other, steps, self.lanes)) * per_process for other in range(self.lanes)]
        window, place = divmod(turn * per_process + index, self.window)
        first = 0 if self.relative else process * steps * per_process + sum(sizes[:lane])
        count = min(self.window, sizes[lane] - window * self.window)
        return Address(
            self.epoch,
            process * self.lanes + lane,
            self.processes * self.lanes,
            first + window * self.window,
            count,
            place,
        )


class StreamEvaluation(Sampler[list[Address]]):
    """All samples of a stream once, in pieces that follow each other: of processes, and of their lanes.

    Args:
        num_samples: Samples of the stream.
        batch_size: Samples per batch.
        rank: Number of this process.
        world_size: Number of processes.
        lanes: Loader processes.
    """

    def __init__(self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1, lanes: int = 1):
        self.batch_size, self.rank, self.world_size, self.lanes = batch_size, rank, world_size, lanes
        begin, end = (num_samples * r // world_size for r in (rank, rank + 1))
        bounds = [begin + (end - begin) * lane // lanes for lane in range(lanes + 1)]
        self.pieces = [range(*pair) for pair in zip(bounds, bounds[1:], strict=False)]

    def __len__(self) -> int:
        return sum(-(-len(piece) // self.batch_size) for piece in self.pieces)

    def __iter__(self) -> Iterator[list[Address]]:
        longest = max(map(len, self.pieces))
        for place in range(0, longest, self.batch_size):
            for lane, piece in enumerate(self.pieces):
                part = piece[place : place + self.batch_size]
                number = self.rank * self.lanes + lane
                if part:
                    total = self.world_size * self.lanes
                    yield [Address(-1, number, total, part[0], len(part), i) for i in range(len(part))]
