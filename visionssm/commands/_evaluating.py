"""What the evaluation command does: one classifier on the data that the options name, a row of figures out."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageDataset, RealLabelsImagenet

from ..engine.data.datasets import (
    check_indices,
    class_mapping,
    class_names,
    log_taken,
    names_by_index,
    open_by_names,
    open_dataset,
    read_class_map,
)
from ..engine.data.loaders import create_eval_loader
from ..engine.data.workers import loader_processes_ended
from ..engine.inference.classifier import Classifier
from ..engine.inference.evaluation import Mistakes, Tally, evaluate
from ..engine.inference.models import autocast, expand_names
from ..engine.inference.prediction import name_of
from ..engine.reports.plots import Prediction, draw_confusion, draw_predictions, draw_reliability
from ..engine.reports.progress import Progress
from ..engine.reports.rows import write_rows
from ..engine.reports.thumbnails import thumbnail
from ..errors import UserError
from . import _auto

_logger = logging.getLogger(__name__)


def evaluate_classifier(classifier: Classifier, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Evaluate one classifier on the data that the options name.

    Returns:
        A row: model, top1, top5, loss, top-1 averaged over the classes, calibration error, images per second,
        parameters in millions, input size, crop.

    Raises:
        UserError: The data cannot be used or does not fit the model.
    """
    config = classifier.data_config
    dataset, names = open_split(classifier, args)
    log_taken(dataset, args.split, classifier.reader)
    loader = create_eval_loader(
        dataset,
        config,
        batch_size=args.batch_size,
        workers=_auto.workers(args.workers),
        device=device,
        pin_memory=device.type == "cuda",
        bad_images=args.bad_images,
        reader=classifier.reader,
    )
    model = classifier.model
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if args.torchcompile:
        model = torch.compile(model, backend=args.torchcompile)
    real = None if args.real_labels is None else real_labels(dataset, args)
    progress = Progress(classifier.name, len(loader), interval=args.log_interval)

    tally = Tally(classifier.model.num_classes)
    mistakes = Mistakes()

    def on_batch(logits: torch.Tensor, labels: torch.Tensor) -> None:
        progress.advance(len(logits))
        tally.add(logits, labels)
        if args.mistakes:
            mistakes.add(logits, labels)
        if real is not None:
            real.add_result(logits)

    with loader_processes_ended():
        metrics = evaluate(
            model,
            loader,
            device,
            autocast=autocast(device, args.amp_dtype if args.amp else None),
            on_batch=on_batch,
            channels_last=args.channels_last,
        )
    rate = progress.rate()
    progress.close()
    write_tally(tally, names, args, classifier.name)
    if args.mistakes:
        draw_mistakes(mistakes, dataset, classifier, args.mistakes)
    extra = {} if real is None else {f"real_top{k}": round(value, 3) for k, value in real.get_accuracy().items()}
    return {
        "model": classifier.name,
        "top1": round(metrics["top1"], 3),
        "top5": round(metrics["top5"], 3),
        "loss": round(metrics["loss"], 5),
        "mean_class_top1": round(tally.mean_class_accuracy(), 3),
        "calibration_error": round(tally.calibration_error(), 3),
        "images": progress.images,
        "images_per_second": round(rate, 1),
        "param_count_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 3),
        "img_size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
        **extra,
    }


def open_split(classifier: Classifier, args: argparse.Namespace) -> tuple[torch.utils.data.Dataset, list[str] | None]:
    """Open the split with its classes mapped by name to those of the classifier.

    Returns:
        The data set, and the classifier's class names.

    Raises:
        UserError: The data has classes that the classifier does not know, or neither says which they are.
    """
    columns = classifier.columns
    options = {
        "batch_size": args.batch_size,
        "input_key": args.input_key or columns.get("input_key"),
        "target_key": args.target_key or columns.get("target_key"),
    }
    if args.dataset in ("", "folder"):
        options = {"batch_size": args.batch_size} | own_images(classifier, args)
    place = (args.dataset, args.data_dir, args.split)
    total = classifier.model.num_classes
    if args.class_map:
        given = read_class_map(args.class_map, args.data_dir, f"{args.data_dir}/{args.split}")
        check_indices(given, total, f"--class-map {args.class_map}")
        return open_by_names(*place, given, always=True, source=f"--class-map {args.class_map}", **options), (
            names_by_index(given)
        )
    known = classifier.class_map
    if known is not None and (classifier.from_run or names_fit(*place, known, **options)):
        dataset = open_by_names(*place, known, always=classifier.class_map_given, source=classifier.name, **options)
        return dataset, classifier.classes
    dataset = open_dataset(*place, **options)
    names = class_names(dataset)
    if names is not None and len(names) != total:
        raise UserError(
            f"the data has {len(names)} classes but {classifier.name} has {total}, and it is not known which is which; "
            "give --class-map or the right --checkpoint"
        )
    return dataset, names


def own_images(classifier: Classifier, args: argparse.Namespace) -> dict[str, Any]:
    """Return how images are divided that have no splits: as the options say, or as the run did."""
    table = args.labels
    known = classifier.own_images.get("labels")
    if table is None and known and (Path(args.data_dir or "", known).is_file() or Path(known).is_file()):
        table = known
    fraction = args.val_fraction if args.val_fraction is not None else classifier.own_images.get("val_fraction")
    return {"labels_file": table, "val_fraction": fraction}


def names_fit(name: str, root: str | None, split: str, known: Mapping[str, int], **options: Any) -> bool:
    """Return whether a data set's classes are among those that are known; published weights know ImageNet's synsets."""
    found = class_mapping(open_dataset(name, root, split, **options))
    return bool(found) and set(found) <= set(known)


def draw_mistakes(mistakes: Mistakes, dataset: Any, classifier: Classifier, path: str) -> None:
    """Draw the images that the model is wrong about and surest of.

    Raises:
        UserError: The data set does not say which file an image is.
    """
    if not isinstance(dataset, ImageDataset):
        raise UserError("--mistakes draws image files; a streamed data set has none")
    found = [
        Prediction(Path(str(dataset.filename(number, absolute=True))), [taken], [confidence], truth)
        for number, confidence, taken, truth in (
            (number, confidence, name_of(taken, classifier), name_of(truth, classifier))
            for confidence, number, taken, truth in mistakes.surest()
        )
    ]
    if not found:
        _logger.info("no mistakes, so no %s", path)
        return
    title = f"{classifier.name}: {len(found)} of {mistakes.count} mistakes, the surest first"
    draw_predictions(
        found, path, columns=min(len(found), 6), title=title, picture=partial(thumbnail, reader=classifier.reader)
    )


def write_tally(tally: Tally, names: list[str] | None, args: argparse.Namespace, title: str) -> None:
    """Write what the options ask for about the classes."""
    if args.per_class:
        write_rows(args.per_class, tally.rows(names))
    for path in args.confusion:
        if path.lower().endswith((".csv", ".json")):
            write_rows(path, tally.confusion_rows(names))
        else:
            draw_confusion(tally.confusion, names, path, title)
    if args.reliability:
        error = f"{title}: calibration error {tally.calibration_error():.1f} %"
        draw_reliability(tally.reliability_rows(), args.reliability, error)


def real_labels(dataset: torch.utils.data.Dataset, args: argparse.Namespace) -> RealLabelsImagenet:
    """Return timm's counter of ImageNet ReaL labels.

    Raises:
        UserError: The data is not ImageNet's validation set in whole, or the file cannot be read.
    """
    if args.bad_images == "skip":
        raise UserError("--real-labels counts every image, so it does not go with --bad-images skip")
    if not hasattr(dataset, "filenames") or len(dataset) != 50000:
        raise UserError(f"--real-labels needs ImageNet's 50000 validation images, found {len(dataset)}")
    try:
        return RealLabelsImagenet(dataset.filenames(basename=True), real_json=args.real_labels or None)
    except (OSError, ValueError) as error:
        raise UserError(f"ReaL labels {args.real_labels} cannot be read: {error}") from error


def model_names(args: argparse.Namespace) -> Sequence[str | None]:
    """Return the models to evaluate: one, or all that a pattern matches.

    Raises:
        UserError: A pattern matches nothing, or is given together with a checkpoint.
    """
    if args.model is None:
        return [None]
    if args.checkpoint and any(char in args.model for char in "*?["):
        raise UserError("--checkpoint belongs to one model, so --model cannot be a pattern")
    return expand_names([args.model], args.pretrained)
