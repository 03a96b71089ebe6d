"""Detection and segmentation of image files: a picture for each, a line for each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..engine.inference.prediction import read_image
from ..errors import UserError
from .channels import fill_channels
from .requirements import check_installed
from .weights import load_strictly

_VISUALIZERS = {"mmdet": "LargeDetVisualizer", "mmseg": "mmseg.SegLocalVisualizer"}  # by scope
_ANNOTATIONS = ("LoadAnnotations", "LoadPanopticAnnotations")  # steps of a pipeline that read the truth
_SHOWN = 10  # objects named in an image's line


class Predictor:
    """A trained detector of mmdet or segmenter of mmseg, for image files.

    Args:
        config: The configuration it was trained with.
        checkpoint: File of its training, or a converted one; it must fill the model exactly.
        device: Where it shall run.

    Attributes:
        classes: Names of what it tells apart.

    Raises:
        UserError: the configuration is none of mmdet or mmseg, or what it needs is not installed.
        CheckpointError: the file is no checkpoint, or its weights are not those of the model.
    """

    def __init__(self, config: str, checkpoint: str, device: str = "cpu"):
        if not Path(config).is_file():
            raise UserError(f"no configuration at {config!r}")
        cfg = Config.fromfile(config)
        scope = cfg.get("default_scope")
        if scope not in _VISUALIZERS:
            raise UserError(f"{config} is a configuration of {scope!r}; predictions are drawn for mmdet and mmseg")
        check_installed(scope)
        fill_channels(cfg)
        cfg.model.backbone.pretrained = False  # the checkpoint has the backbone
        init_default_scope(scope)
        self.model: Any = revert_sync_batchnorm(MODELS.build(cfg.model))
        load_strictly(self.model, checkpoint)
        self.model.to(device).eval()
        dataset = cfg.test_dataloader.dataset
        metainfo = DATASETS.build(dict(dataset, lazy_init=True)).metainfo  # names and colours; reads no file
        self.classes: Sequence[str] = metainfo["classes"]
        self._pipeline = Compose([step for step in dataset.pipeline if step["type"] not in _ANNOTATIONS])
        if scope == "mmdet":
            from . import visualizing  # noqa: F401  registers it; mmdet is installed

        self._visualizer = VISUALIZERS.get(_VISUALIZERS[scope])(vis_backends=[])  # build() gives one per process
        self._visualizer.dataset_meta = metainfo

    @torch.inference_mode()
    def __call__(self, image: Path, picture: Path | None = None, min_score: float = 0.3) -> BaseDataElement:
        """Detect or segment what an image file shows.

        Args:
            image: The file.
            picture: Where to draw the result over the image, or None.
            min_score: Boxes below are not drawn.

        Returns:
            The sample of mmdet (`pred_instances`) or mmseg (`pred_sem_seg`).

        Raises:
            BadImageError: the image cannot be read.
        """
        pixels = np.asarray(read_image(image, "RGB"))  # says which image is damaged
        sample = self.model.test_step(pseudo_collate([self._pipeline(dict(img_path=str(image), img_id=0))]))[0].cpu()
        if picture is not None:
            picture.parent.mkdir(parents=True, exist_ok=True)
            options = dict(pred_score_thr=min_score) if "pred_instances" in sample else {}
            self._visualizer.add_datasample(
                image.name, pixels, sample, draw_gt=False, show=False, out_file=str(picture), **options
            )
        return sample

    def describe(self, sample: BaseDataElement, min_score: float = 0.3) -> str:
        """A line about a result: the objects with their scores, or the classes with their share of the pixels."""
        if "pred_instances" in sample:
            found = sample.pred_instances
            return objects(found.labels, found.scores, self.classes, min_score)
        return shares(sample.pred_sem_seg.data[0], self.classes)


def objects(labels: Tensor, scores: Tensor, classes: Sequence[str], min_score: float) -> str:
    """The detected objects with their scores, best first."""
    ranked = sorted(
        ((score, label) for score, label in zip(scores.tolist(), labels.tolist(), strict=True) if score >= min_score),
        reverse=True,
    )
    named = [f"{classes[label]} ({score:.2f})" for score, label in ranked[:_SHOWN]]
    if len(ranked) > _SHOWN:
        named.append(f"{len(ranked) - _SHOWN} more")
    return ", ".join(named) or f"nothing with a score of {min_score} or more"


def shares(labels: Tensor, classes: Sequence[str]) -> str:
    """The classes of an image with their share of its pixels, largest first."""
    numbers, counts = labels.flatten().unique(return_counts=True)
    ranked = sorted(zip(counts.tolist(), numbers.tolist(), strict=True), reverse=True)
    return ", ".join(f"{classes[number]} {100 * count / labels.numel():.1f} %" for count, number in ranked)
