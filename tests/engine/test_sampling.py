"""The order of samples is a function of seed, epoch, rank and position, and the one torch and timm would take."""

import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import PrefetchLoader
from torch.utils.data.distributed import DistributedSampler

from visionssm.engine.data.images import ImageReader
from visionssm.engine.data.loaders import create_eval_loader, create_train_loader
from visionssm.engine.data.processes import World
from visionssm.engine.data.randomness import derive_seed
from visionssm.engine.data.sampling import EpochBatches, EvaluationIndices


def indices(batches):
    return [index for batch in batches for index, *_ in batch]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_order_is_that_of_torchs_distributed_sampler(world):
    data = range(50)
    for rank in range(world):
        theirs = DistributedSampler(data, num_replicas=world, rank=rank, seed=7)
        theirs.set_epoch(3)
        ours = EpochBatches(50, 5, seed=7, rank=rank, world_size=world)
        ours.start_at(3)
        expected = list(theirs)
        assert indices(ours) == expected[: len(expected) // 5 * 5]


@pytest.mark.parametrize("size", [50, 600])
def test_repeats_are_those_of_timms_sampler(size):
    for rank in range(2):
        theirs = RepeatAugSampler(range(size), num_replicas=2, rank=rank, num_repeats=3)
        theirs.set_epoch(4)
        ours = EpochBatches(size, 5, seed=0, rank=rank, world_size=2, repeats=3)
        ours.start_at(4)
        expected = list(theirs)
        assert indices(ours) == expected[: len(expected) // 5 * 5]


def test_copies_of_a_sample_have_different_keys():
    batches = EpochBatches(40, 10, repeats=3)
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == len(keys)


def test_an_epoch_can_be_entered_at_any_batch():
    batches = EpochBatches(23, 4, seed=1)
    whole = list(batches)
    assert len(whole) == len(batches) == 5
    for first in range(6):
        batches.start_at(0, first)
        assert list(batches) == whole[first:]


def test_epochs_differ():
    batches = EpochBatches(23, 4)
    first = list(batches)
    batches.start_at(1)
    assert indices(first) != indices(batches)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_every_sample_once(world):
    shares = [list(EvaluationIndices(11, rank=rank, world_size=world)) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == list(range(11))


def test_seeds_depend_on_every_part_and_their_order():
    seeds = {derive_seed(1, 2), derive_seed(2, 1), derive_seed(12), derive_seed("1", 2), derive_seed(1, 2, 0)}
    assert len(seeds) == 5
    assert derive_seed(1, "step", 3) == derive_seed(1, "step", 3)


def test_batches_come_from_timms_prefetcher():
    """Which copies to a GPU on a stream of its own while the batch before is worked on."""
    images = [(Image.new("L", (8, 8), 51 * value), value) for value in range(4)]
    config = {"input_size": (1, 8, 8), "mean": (0.2,), "std": (0.5,), "interpolation": "bilinear"}
    config |= {"crop_pct": 1.0, "crop_mode": "center"}
    device = torch.device("cpu")
    sizes = dict(batch_size=2, workers=0, reader=ImageReader(1))
    augmentation = dict(no_aug=True, interpolation="bilinear")
    train = create_train_loader(images, config, device, World(), seed=0, augmentation=augmentation, **sizes)
    evaluation = create_eval_loader(images, config, device=device, **sizes)
    assert isinstance(train.batches, PrefetchLoader) and isinstance(evaluation, PrefetchLoader)
    for batches in (train.epoch(0), evaluation):
        for pixels, labels in batches:
            expected = ((0.2 * labels - 0.2) / 0.5).view(-1, 1, 1, 1).expand(2, 1, 8, 8)
            torch.testing.assert_close(pixels, expected)


def test_augmentation_takes_every_strength_it_draws():
    """Also posterising to no bits at all, which Pillow refuses."""
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    posterize = auto_augment.NAME_TO_OP["PosterizeIncreasing"]
    assert posterize(image, 0).getextrema() == ((0, 0),) * 3
    assert posterize(image, 1).getpixel((0, 0)) == (128, 0, 0)
