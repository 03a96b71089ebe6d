"""Small pictures of image files, read as a model reads them."""

from pathlib import Path

from PIL import Image

from ..data.images import ImageReader


def thumbnail(path: str | Path, reader: ImageReader, side: int = 160) -> Image.Image:
    """Return an RGB picture of a file whose longer side has at most `side` pixels; no smaller image is enlarged.

    Of images with other numbers of channels than 1 and 3 the first is shown.

    Raises:
        BadImageError: The file cannot be read.
    """
    image = reader.read(path, str(path))
    picture = (image[0] if isinstance(image, list) else image).convert("RGB")
    picture.thumbnail((side, side))
    return picture
