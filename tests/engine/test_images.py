"""Image files of every kind: read by their values and channels, or refused by name."""

import io
import random

import numpy as np
import pytest
from conftest import load
from PIL import Image, features

from visionssm.commands import predict, validate
from visionssm.engine.data.datasets import open_dataset
from visionssm.engine.data.images import BadImageError, ChannelTransform, ImageReader, endings
from visionssm.engine.inference.classifier import load_classifier
from visionssm.errors import UserError

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def saved(image: Image.Image, form: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(form):
    file = saved(Image.fromarray((RAMP * 65535).astype(np.uint16)), form)
    read = np.asarray(ImageReader(1).read(file, "x"))
    assert np.abs(read - RAMP * 255).max() <= 1
    colour = np.asarray(ImageReader(3).read(file, "x"))
    assert (colour == read[..., None]).all()


def test_floats_and_integers_of_32_bits_need_a_range_that_is_known():
    unit = saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF")
    assert np.abs(np.asarray(ImageReader(1).read(unit, "x")) - RAMP * 255).max() <= 1
    for array, kind in ((RAMP.astype(np.float32) * 1000, "float"), ((RAMP * 1e6).astype(np.int32), "int32")):
        file = saved(Image.fromarray(array), "TIFF")
        with pytest.raises(BadImageError, match=f"image scan.tif cannot be used: its values are {kind}.*--pixel-range"):
            ImageReader(1).read(file, "scan.tif")
        ranged = ImageReader(1, pixel_range=(0, float(array.max())))
        assert np.abs(np.asarray(ranged.read(file, "x")) - RAMP * 255).max() <= 1


@pytest.mark.parametrize("channels, mode", [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA"), (3, "HSV"), (4, "CMYK")])
def test_modes_by_channels(channels, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 4), np.uint8))
    read = ImageReader(channels, mode).read(saved(image, "PNG"), "x")
    values = np.asarray(read) if isinstance(read, Image.Image) else np.stack([np.asarray(p) for p in read], -1)
    assert np.array_equal(values, np.asarray(image.convert(mode)))


def test_arrays_and_pages_give_any_number_of_channels(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (9, 7, 6), np.uint8)
    np.save(tmp_path / "a.npy", array)
    pages = [Image.fromarray(np.ascontiguousarray(array[..., i])) for i in range(6)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for name in ("a.npy", "a.tif"):
        planes = ImageReader(6).read(tmp_path / name, name)
        assert np.array_equal(np.stack([np.asarray(p) for p in planes], -1), array)
    with pytest.raises(BadImageError, match=r"shape \(9, 7, 6\), expected \(height, width, 3\)"):
        ImageReader(3).read(tmp_path / "a.npy", "a.npy")
    with pytest.raises(BadImageError, match="has 3 channel.*expected 6"):
        ImageReader(6).read(saved(Image.new("RGB", (4, 4)), "PNG"), "x.png")


def test_modes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="HSV has 3 channel.*takes 1.*--in-chans 3"):
        ImageReader(1, "HSV")
    with pytest.raises(UserError, match="is no mode"):
        ImageReader(3, "RBG")


def test_planes_get_one_draw():
    def crop(plane):
        x, y = random.randrange(4), random.randrange(4)
        return np.asarray(plane)[None, y : y + 4, x : x + 4]

    plane = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    out = ChannelTransform(crop)([plane] * 5)
    assert out.shape == (5, 4, 4) and (out == out[:1]).all()


def test_every_ending_that_pillow_reads_is_taken_and_the_rest_counted(tmp_path, caplog, image_folder):
    forms = {"png": "PNG", "tif": "TIFF", "bmp": "BMP", "gif": "GIF", "ppm": "PPM", "jpg": "JPEG"}
    forms |= {e: f for e, f, has in (("webp", "WEBP", "webp"), ("jp2", "JPEG2000", "jpg_2000")) if features.check(has)}
    folder = tmp_path / "validation" / "a"
    folder.mkdir(parents=True)
    for ending, form in forms.items():
        Image.new("RGB", (8, 8), (9, 90, 200)).save(folder / f"x.{ending}", form)
    (folder / "notes.txt").write_text("no image")
    (folder / "table.h5").write_text("no image either")
    dataset = open_dataset("", str(tmp_path), "validation")
    assert len(dataset) == len(forms) and {f".{ending}" for ending in forms} <= set(endings())
    from visionssm.engine.data.datasets import log_taken

    with caplog.at_level("INFO"):
        log_taken(dataset, "validation", ImageReader())
    assert f"{len(forms)} images (" in caplog.text and "passed over 2 (" in caplog.text
    assert ".txt 1" in caplog.text and ".h5 1" in caplog.text


def test_an_image_above_the_limit_is_named_before_it_is_decoded():
    file = saved(Image.new("1", (300, 200)), "PNG")
    with pytest.raises(
        BadImageError, match="image big.png cannot be used: 300 x 200 pixels are more than --max-pixels"
    ):
        ImageReader(3, max_pixels=59_999).read(file, "big.png")
    for limit in (60_000, 0):
        assert ImageReader(3, max_pixels=limit).read(file, "big.png").size == (300, 200)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about what it repairs
def test_damaged_files_end_in_their_name():
    """Cut short, zeroed and with bits flipped, in every common format and as an array."""
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 255, (24, 20, 3), np.uint8))
    files = [
        saved(image, form).getvalue() for form in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM", "TGA", "PCX", "ICO")
    ]
    array = io.BytesIO()
    np.save(array, np.asarray(image))
    reader = ImageReader(3, max_pixels=1_000_000)
    for content in [*files, array.getvalue()]:
        for _ in range(40):
            damaged = bytearray(content[: generator.integers(1, len(content) + 1)])
            for place in generator.integers(0, len(damaged), 8):
                damaged[place] = generator.integers(256)
            try:
                assert reader.read(io.BytesIO(bytes(damaged)), "victim").mode == "RGB"
            except BadImageError as error:
                assert "image victim cannot be" in str(error)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_channels_from_training_to_prediction(run, tmp_path, capsys, channels):
    """Planes of another number than 1 or 3: augmented, trained, validated and predicted with the run's settings."""
    generator = np.random.default_rng(0)
    for split in ("train", "validation"):
        for i, kind in enumerate(("ant", "bee")):
            folder = tmp_path / "data" / split / kind
            folder.mkdir(parents=True)
            for number in range(4):
                values = generator.integers(0, 60, (32, 32, channels)) + 120 * i
                np.save(folder / f"{number}.npy", values.astype(np.uint8))
    assert run(data_dir=tmp_path / "data", in_chans=channels, epochs=1, aa="rand-m5") == 0
    path = str(run.folder / "run" / "last.pth.tar")
    assert len(load(path)["task_state"]["run"]["facts"]["data_config"]["mean"]) == channels
    assert load_classifier(None, path).reader.channels == channels
    argv = ["--checkpoint", path, "--device", "cpu"]
    assert validate.main([*argv, "--data-dir", str(tmp_path / "data"), "-j", "0"]) == 0
    assert predict.main([str(tmp_path / "data/validation"), *argv]) == 0
    assert "8 images (.npy 8)" in capsys.readouterr().out
