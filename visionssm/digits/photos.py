"""Photographs that come with scikit-image and scikit-learn, as sharp images for restoration."""

import os
from pathlib import Path

from PIL import Image

from ..errors import UserError
from ..files import write_atomically

# file names in the two packages' folders of example images; their licences are in the folders' README files
PHOTOS = {
    "train": ("coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg", "china.jpg"),
    "validation": ("astronaut.png", "chelsea.png", "flower.jpg"),
}


def write_photos(folder: str | os.PathLike) -> dict[str, int]:
    """Write colour photographs as PNG files to folder/train and folder/validation; the splits share none.

    Args:
        folder: Where to write; files of the same names are replaced.

    Returns:
        Number of photographs by split.

    Raises:
        UserError: scikit-image or scikit-learn is missing, or does not hold a photograph.
    """
    try:
        import skimage.data  # noqa: PLC0415  optional package
        import sklearn.datasets  # noqa: PLC0415  optional package
    except ImportError as error:
        raise UserError(f"the photographs come with packages: pip install 'visionssm[demo]' ({error})") from error
    places = [Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"]
    found = {
        name: path
        for place in places
        for names in PHOTOS.values()
        for name in names
        if (path := place / name).is_file()
    }
    for split, names in PHOTOS.items():
        for name in names:
            if name not in found:
                raise UserError(
                    f"neither scikit-image nor scikit-learn holds {name}, looked in {places[0]} and {places[1]}"
                )
            with Image.open(found[name]) as image:
                pixels = image.convert("RGB")
            write_atomically(Path(folder) / split / f"{Path(name).stem}.png", lambda file: pixels.save(file, "PNG"))  # noqa: B023
    return {split: len(names) for split, names in PHOTOS.items()}
