"""Overlaps and suppression of boxes (x1, y1, x2, y2)."""

import numpy as np
import torch
import torchvision
from torch import Tensor

from ._precision import widen

__all__ = ["bbox_overlaps", "nms", "nms_match", "softnms"]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy suppression.

    Args:
        boxes: (n, 4).
        scores: (n,).
        iou_threshold: Boxes that overlap a better one by more are left out.
        offset: What is added to widths and heights, 0 or 1.

    Returns:
        Indices of the boxes that stay, best first.
    """
    boxes = widen(boxes)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torchvision.ops.nms(boxes, scores.to(boxes.dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Suppression that lowers the scores of boxes that overlap a better one (arXiv:1704.04503), on the CPU.

    Args:
        boxes: (n, 4).
        scores: (n,).
        dets: (n, 5); receives the boxes that stay and their scores.
        iou_threshold: For methods 0 and 1: overlaps below lower nothing.
        sigma: For method 2: width of the Gaussian.
        min_score: Boxes whose score falls below are left out.
        method: 0 leaves out, 1 lowers linearly, 2 by a Gaussian.
        offset: What is added to widths and heights, 0 or 1.

    Returns:
        Indices of the boxes that stay, in the order in which they were chosen.
    """
    corners = widen(boxes).numpy()
    left: np.ndarray = np.arange(len(corners))
    values: np.ndarray = widen(scores).numpy().astype(corners.dtype)  # a copy
    areas = _areas(corners, offset)
    kept, rows = [], []
    while len(left):
        best = int(values.argmax())
        chosen = left[best]
        kept.append(int(chosen))
        rows.append([*corners[chosen], values[best]])
        left[best], values[best] = left[0], values[0]
        left, values = left[1:], values[1:]
        overlaps = _overlaps(corners[chosen], areas[chosen], corners[left], areas[left], offset)
        if method == 2:
            values = values * np.exp(-(overlaps**2) / sigma)
        else:
            values = np.where(overlaps >= iou_threshold, values * (1 - overlaps if method == 1 else 0), values)
        stays = values >= min_score
        left, values = left[stays], values[stays]
    if rows:
        dets[: len(rows)] = torch.from_numpy(np.asarray(rows, dtype=corners.dtype)).to(dets.dtype)
    return torch.tensor(kept, dtype=torch.long)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Greedy suppression that tells which boxes each one suppresses, on the CPU.

    Args:
        dets: (n, 5): boxes and scores.
        iou_threshold: Boxes that overlap a better one by so much or more join its group.

    Returns:
        Groups of indices, each and all best first.
    """
    corners, scores = widen(dets).detach().numpy()[:, :4], widen(dets).detach().numpy()[:, 4]
    areas = _areas(corners, 0)
    left = np.argsort(-scores, kind="stable")
    groups = []
    while len(left):
        best, others = left[0], left[1:]
        joins = _overlaps(corners[best], areas[best], corners[others], areas[others], 0) >= iou_threshold
        groups.append([int(best), *map(int, others[joins])])
        left = others[~joins]
    return groups


def _areas(corners: np.ndarray, offset: int) -> np.ndarray:
    return (corners[:, 2] - corners[:, 0] + offset) * (corners[:, 3] - corners[:, 1] + offset)


def _overlaps(box: np.ndarray, area: float, boxes: np.ndarray, areas: np.ndarray, offset: int) -> np.ndarray:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + offset
    inside = sides.clip(min=0).prod(axis=1)
    return inside / (area + areas - inside)


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Intersections of boxes over their unions, or over the first box.

    Args:
        bboxes1: (m, 4).
        bboxes2: (n, 4), n = m if aligned.
        ious: (m, n), or (m,) if aligned; receives the result.
        mode: 0 for intersection over union, 1 for intersection over the first.
        aligned: Compare box by box instead of each with each.
        offset: What is added to widths and heights, 0 or 1.
    """
    first, second = widen(bboxes1), widen(bboxes2)
    if not aligned:
        first, second = first[:, None], second[None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2]) + offset
    inside = sides.clamp(min=0).prod(dim=-1)
    area = (first[..., 2:] - first[..., :2] + offset).prod(dim=-1)
    if mode == 0:
        area = area + (second[..., 2:] - second[..., :2] + offset).prod(dim=-1) - inside
    ious.copy_(inside / area.clamp(min=offset))
