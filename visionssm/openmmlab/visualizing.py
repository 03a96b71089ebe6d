"""mmdet's visualizer with enlarged pictures and labels that do not lie on each other; needs mmdet."""

from typing import Any

import numpy as np
import torch
from mmdet.visualization import DetLocalVisualizer
from mmdet.visualization.palette import get_palette
from mmengine.registry import VISUALIZERS
from torch.nn.functional import interpolate

from .object_pictures import draw_objects, enlarge, enlargement


@VISUALIZERS.register_module()
class LargeDetVisualizer(DetLocalVisualizer):
    """Draws boxes and masks of small images several times as large; arguments are those of mmdet's visualizer."""

    def add_datasample(self, name: str, image: np.ndarray, data_sample: Any = None, **kwargs: Any) -> None:
        """Draw a sample as mmdet does, enlarged where that suits every kind of result it holds."""
        factor = enlargement(*image.shape[:2])
        instances = {"gt_instances", "pred_instances", "ignored_instances", "proposals"}
        if factor > 1 and data_sample is not None and set(data_sample.keys()) <= instances:
            data_sample = data_sample.cpu()
            for key in instances & set(data_sample.keys()):
                setattr(data_sample, key, _scaled(getattr(data_sample, key), factor))
            image = enlarge(image.clip(0, 255).astype(np.uint8), factor)
        super().add_datasample(name, image, data_sample, **kwargs)

    def _draw_instances(self, image: np.ndarray, instances: Any, classes: Any, palette: Any) -> np.ndarray:
        if "bboxes" not in instances or not instances.bboxes.sum():
            return super()._draw_instances(image, instances, classes, palette)
        if "scores" in instances:
            instances = instances[instances.scores.argsort(descending=True)]
        labels = instances.labels.tolist()
        names = [classes[label] if classes is not None else f"class {label}" for label in labels]
        if "scores" in instances:
            names = [f"{name} {100 * score:.0f}" for name, score in zip(names, instances.scores.tolist(), strict=True)]
        known = get_palette(palette if self.bbox_color is None else self.bbox_color, max(labels, default=0) + 1)
        colours = [(int(red), int(green), int(blue)) for red, green, blue in (known[label] for label in labels)]
        masks = _as_array(instances.masks) if "masks" in instances else None
        drawn = draw_objects(image, _boxes(instances.bboxes).numpy(), names, colours, masks)
        self.set_image(drawn)
        return drawn


def _boxes(boxes: Any) -> torch.Tensor:
    return getattr(boxes, "tensor", boxes).float()


def _as_array(masks: Any) -> np.ndarray:
    return masks.numpy() if isinstance(masks, torch.Tensor) else masks.to_ndarray()


def _scaled(instances: Any, factor: int) -> Any:
    """Return instances whose boxes and masks are those of an enlarged image."""
    scaled = instances.clone() if hasattr(instances, "clone") else instances
    if "bboxes" in scaled:
        scaled.bboxes = factor * _boxes(scaled.bboxes)
    if "masks" in scaled and len(scaled.masks):
        masks = torch.from_numpy(_as_array(scaled.masks).astype(np.float32))[:, None]
        scaled.masks = interpolate(masks, scale_factor=factor, mode="nearest")[:, 0].bool()
    elif "masks" in scaled:
        del scaled.masks
    return scaled
