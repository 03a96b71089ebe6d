"""Pictures of objects: enlarged, with outlined masks, and labels that do not lie on each other."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 1000  # pixels of a picture's longer side that small images are enlarged to
LARGEST = 8

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]


def enlargement(height: int, width: int) -> int:
    """Return the whole number by which an image is drawn larger: at least 3 below 334 pixels, 1 from 501 on."""
    return max(1, min(LARGEST, math.ceil(SIDE / max(height, width, 1) - 0.5)))


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Return an image (h, w, 3) of uint8 as (factor h, factor w, 3)."""
    if factor == 1:
        return image
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC))


def draw_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    colours: Sequence[Colour],
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """Draw objects over an image, the first ones on top.

    Args:
        image: (h, w, 3) of uint8.
        boxes: (n, 4): left, top, right, bottom in pixels.
        names: What is written at each box.
        colours: Of each object.
        masks: (n, h, w) of booleans, or None.

    Returns:
        (h, w, 3) of uint8.
    """
    pixels = image.astype(np.float32)
    for number in reversed(range(len(boxes))):
        if masks is not None:
            mask = masks[number].astype(bool)
            pixels[mask] = 0.6 * pixels[mask] + 0.4 * np.array(colours[number], np.float32)
            pixels[_edge(mask)] = colours[number]
    picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    thick = max(2, round(max(picture.size) / 500))
    for number in reversed(range(len(boxes))):
        left, top, right, bottom = boxes[number].tolist()
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colours[number], width=thick)
    font = ImageFont.load_default(size=max(12, round(max(picture.size) / 60)))
    taken: list[Box] = []
    for box, name, colour in zip(boxes.tolist(), names, colours, strict=True):
        place = free_place(box, draw.textbbox((0, 0), name, font=font), picture.size, taken)
        taken.append(place)
        draw.rectangle(place, fill=colour)
        ink = (0, 0, 0) if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140 else (255, 255, 255)
        draw.text((place[0] + 3, place[1] + 1), name, fill=ink, font=font)
    return np.asarray(picture)


def free_place(box: Sequence[float], text: Sequence[float], size: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Return where a label goes: above its box, else as near as nothing is covered, inside the picture.

    Args:
        box: Of the object.
        text: Box of the text at the origin.
        size: Width and height of the picture.
        taken: Labels that are placed already.
    """
    width, height = text[2] + 6, text[3] + 4
    left = min(max(box[0], 0.0), max(size[0] - width, 0.0))
    first = box[1] - height if box[1] >= height else box[1]
    best: tuple[float, Box] | None = None
    for row in range(math.ceil(size[1] / height) + 1):
        for sign in (1, -1):
            top = first + sign * row * height
            for column in range(math.ceil(size[0] / width) + 1):
                for side in (1, -1):
                    x, y = left + side * column * width, min(max(top, 0.0), max(size[1] - height, 0.0))
                    place = (x, y, x + width, y + height)
                    inside = 0 <= x and x + width <= size[0]
                    if inside and not any(_overlap(place, other) for other in taken):
                        distance = abs(x - left) + abs(y - first)
                        if best is None or distance < best[0]:
                            best = (distance, place)
        if best is not None and best[0] <= row * height:
            break  # further rows lie further away
    return best[1] if best else (left, first, left + width, first + height)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _edge(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask (h, w) that touch what is outside."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner
