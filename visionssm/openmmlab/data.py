"""Is the data that a config names there, and does it fit the model? Said before the first iteration."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image
from torch import nn

from .errors import ConfigError

_LOOKED_AT = 50  # label maps, evenly spaced
_HEADS = {"bbox_head", "mask_head", "decode_head", "auxiliary_head"}  # those that tell the data set's classes apart


def move_data(cfg: Config, root: str) -> None:
    """Let every data set and evaluator of a config read below another folder.

    Args:
        cfg: The config, changed in place.
        root: Folder that takes the place of the `data_root` of all its data sets.

    Raises:
        ConfigError: the data sets have none, or different ones.
    """
    parts = [
        cfg[key]
        for split in ("train", "val", "test")
        for key in (f"{split}_dataloader", f"{split}_evaluator")
        if cfg.get(key) is not None
    ]
    roots = {dataset["data_root"].rstrip("/") for part in parts for dataset in _find(part, "data_root")}
    if len(roots) != 1:
        raise ConfigError(f"one folder of data can be replaced if all data sets have the same, found {sorted(roots)}")
    old = roots.pop()

    def moved(value: Any) -> Any:
        if isinstance(value, str) and (value == old or value.startswith(old + "/")):
            return os.path.join(root, value[len(old) :].lstrip("/"))
        return value

    for part in parts:
        _replace(part, moved)


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Check that the files which data sets and evaluators name exist, and that COCO's categories are as named.

    Args:
        cfg: The config.
        splits: Which loaders are used, of "train", "val", "test".

    Raises:
        ConfigError: a file is missing, or its categories differ from the classes of the config.
    """
    for split in splits:
        for dataset in _find(cfg.get(f"{split}_dataloader"), "data_root"):
            root = dataset["data_root"] or ""
            inside = [dataset.get("ann_file"), *(dataset.get("data_prefix") or {}).values()]
            for path in [root, *(os.path.join(root, p) for p in inside if p)]:
                _check_exists(path, f"{split}_dataloader")
            classes = (dataset.get("metainfo") or {}).get("classes")
            if classes is not None and str(dataset.get("type")).endswith("CocoDataset"):
                _check_categories(os.path.join(root, dataset["ann_file"]), classes)
        for evaluator in _find(cfg.get(f"{split}_evaluator"), "ann_file"):
            _check_exists(evaluator["ann_file"], f"{split}_evaluator")


def _check_exists(path: str, where: str) -> None:
    if path and "://" not in path and not os.path.exists(path):
        raise ConfigError(
            f"the config's {where} reads {path!r}, which does not exist; put the data there, or name its "
            "folder by --data-dir"
        )


def _check_categories(path: str, classes: Sequence[str]) -> None:
    """mmdet numbers classes as the file lists them, whatever the order in a config, and drops unknown ones silently."""
    with open(path, encoding="utf-8") as file:
        names = [category["name"] for category in json.load(file).get("categories", [])]
    if isinstance(classes, str) or [name for name in names if name in classes] != list(classes):
        raise ConfigError(
            f"the config's classes {classes!r} are not categories of {path!r} in that file's order; it "
            f"has {tuple(names)!r}"
        )


def _find(node: Any, key: str) -> Iterator[dict]:
    """Dictionaries that have a key, at any depth: data sets may be wrapped in others."""
    if isinstance(node, dict):
        if node.get(key) is not None:
            yield node
        for value in node.values():
            yield from _find(value, key)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _find(value, key)


def _replace(node: Any, change: Callable[[Any], Any]) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            node[key] = change(value)
            _replace(node[key], change)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            node[index] = change(value)
            _replace(node[index], change)


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Compare the classes of a data set with its annotations and with a model's heads.

    Args:
        model: A detector or segmenter.
        dataset: What it is trained on, possibly wrapped. Without a list of classes nothing is known and checked.

    Raises:
        ConfigError: the annotations lack a class, nothing is left to train on, a label map is missing or has numbers
            beyond the classes, or heads tell others apart.
    """
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if classes is None:
        return
    if isinstance(classes, str):
        raise ConfigError(f"classes must be a list or tuple of names, got the string {classes!r}")
    found = getattr(dataset, "cat_ids", None)
    if found is not None and len(found) != len(classes):
        raise ConfigError(
            f"{len(found)} of the {len(classes)} classes {list(classes)} are among the categories of "
            f"{dataset.ann_file!r}; metainfo=dict(classes=...) must list the names in that file"
        )
    if not len(dataset):
        raise ConfigError(f"the data set has no image with an annotation of {list(classes)}")
    if hasattr(dataset, "seg_map_suffix"):
        _check_labels(dataset, len(classes))
    wrong = {
        name: module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, "num_classes", None), int)
        and set(name.split(".")) & _HEADS
        and module.num_classes != len(classes)
    }
    if wrong:
        found = ", ".join(f"{name}.num_classes={number}" for name, number in wrong.items())
        raise ConfigError(
            f"the data set has {len(classes)} classes, but the model has {found}; write num_classes={len(classes)}"
        )


def _check_labels(dataset: Any, count: int) -> None:
    """Some label maps of a data set of mmseg: a number beyond the classes ends on a GPU in an assertion of a kernel."""
    step = -(-len(dataset) // _LOOKED_AT)
    for index in range(0, len(dataset), step):
        info = dataset.get_data_info(index)
        path = info.get("seg_map_path") or ""
        if not path.endswith((".png", ".bmp", ".tif")) or "://" in path:
            continue
        if not os.path.isfile(path):
            raise ConfigError(f"the image {info['img_path']!r} has no label map {path!r}")
        with Image.open(path) as file:
            labels = np.asarray(file)
        if labels.ndim != 2:
            raise ConfigError(
                f"{path!r} is a colour image; a label map has one channel, whose values are class numbers"
            )
        labels = np.unique(labels[labels != dataset.ignore_index]).astype(int)
        labels = labels[labels > 0] - 1 if dataset.reduce_zero_label else labels
        if not dataset.label_map and labels.size and labels.max() >= count:
            raise ConfigError(
                f"{path!r} has the label {labels.max()}, but the {count} classes are numbered from 0 to {count - 1}; "
                f"what counts nowhere is {dataset.ignore_index}"
            )


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Runs `check_classes` before training begins."""

    priority = "VERY_HIGH"

    def before_train(self, runner) -> None:
        model = runner.model
        check_classes(getattr(model, "module", model), runner.train_dataloader.dataset)
