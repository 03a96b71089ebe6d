"""The data that a classifier is measured by, and the few images that it is calibrated with."""

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ...errors import UserError
from ..data.datasets import SKIPPED, class_mapping, class_names, open_by_names, open_dataset
from ..data.loaders import create_eval_loader
from .classifier import Classifier


def open_split(classifier: Classifier, name: str, root: str | None, split: str, **options) -> Dataset:
    """Open a split with its classes mapped by name to those of a classifier.

    Args:
        classifier: Knows the classes.
        name: As for `open_dataset`.
        root: As for `open_dataset`.
        split: As for `open_dataset`.
        options: Further arguments of `open_dataset`.

    Raises:
        UserError: The data has classes that the classifier does not know, or neither says which they are.
    """
    known = classifier.class_map
    dataset = open_dataset(name, root, split, **options)
    found = class_mapping(dataset)
    if known is not None and (classifier.from_run or (found and set(found) <= set(known))):
        return open_by_names(
            name, root, split, known, always=classifier.class_map_given, source=classifier.name, **options
        )
    names = class_names(dataset)
    if names is not None and len(names) != classifier.model.num_classes:
        raise UserError(
            f"the data has {len(names)} classes but {classifier.name} has {classifier.model.num_classes}, and it is "
            "not known which is which; give the right --checkpoint"
        )
    return dataset


def calibration_batches(
    classifier: Classifier,
    dataset: Dataset,
    *,
    samples: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    bad_images: str = "refuse",
) -> list[tuple[Tensor, Tensor]]:
    """Draw images of a data set and prepare them as for evaluation.

    Args:
        classifier: Says how images are prepared.
        dataset: Map-style, as from `open_split`.
        samples: Images; all if the data set has fewer.
        batch_size: Images per batch.
        seed: Of the draw.
        device: Where the batches are put.
        bad_images: As for `ReadableImages`.

    Returns:
        Pairs of images (b, c, h, w) and labels (b), int64; what could not be read is left out.

    Raises:
        UserError: The data set is a stream, or no image is asked for or can be read.
    """
    if isinstance(dataset, IterableDataset):
        raise UserError("images to calibrate with are drawn from a folder or another indexed data set, not a stream")
    if samples < 1 or batch_size < 1:
        raise UserError(f"--samples and --batch-size must be at least 1, got {samples} and {batch_size}")
    count = len(dataset)  # type: ignore[arg-type]
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:samples].tolist()
    loader = create_eval_loader(
        dataset,
        classifier.data_config,
        batch_size=batch_size,
        workers=0,
        device=device,
        bad_images=bad_images,
        reader=classifier.reader,
        indices=chosen,
    )
    batches = []
    for images, labels in loader:
        kept = labels != SKIPPED
        if kept.any():
            batches.append((images[kept], labels[kept]))
    if not batches:
        raise UserError("no image to calibrate with can be read")
    return batches
