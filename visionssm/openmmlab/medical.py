"""Transforms for layouts that medical segmentation uses; name this module in `custom_imports`, as it needs mmseg."""

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from ..errors import UserError


@TRANSFORMS.register_module()
class LoadSlice(BaseTransform):
    """Read `image` (h, w), floats, of a file of NumPy; its `label` is left to `LoadSliceLabels`.

    Raises:
        UserError: the file is no such one.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image = _read(results["img_path"], "image")
        results["img"] = np.ascontiguousarray(image, np.float32)[..., None]
        results["img_shape"] = results["ori_shape"] = image.shape
        return results


@TRANSFORMS.register_module()
class LoadSliceLabels(BaseTransform):
    """Read `label` (h, w), class numbers, of the file that `LoadSlice` read.

    Raises:
        UserError: the file is no such one.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        label = _read(results["img_path"], "label")
        if label.shape != results["ori_shape"]:
            raise UserError(f"slice {results['img_path']} has {results['ori_shape']} pixels, labels for {label.shape}")
        results["gt_seg_map"] = label.astype(np.uint8)
        results.setdefault("seg_fields", []).append("gt_seg_map")
        return results


def _read(path: str, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            array = file[name]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"slice {path} cannot be read, expected arrays `image` and `label`: {error}") from error
    if array.ndim != 2:
        raise UserError(f"slice {path} holds `{name}` of {array.shape}, expected (h, w)")
    return array


@TRANSFORMS.register_module()
class BinaryLabels(BaseTransform):
    """Make masks of black and white two classes, 0 and 1; after `LoadAnnotations`."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        results["gt_seg_map"] = (results["gt_seg_map"] > 127).astype(np.uint8)
        return results
