"""Decoders, and the measurement of loading alone."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from visionssm.commands import _loading, benchmark
from visionssm.engine.data import images as images_module
from visionssm.engine.data.images import ImageReader


def encoded(mode="RGB", form="JPEG", size=(37, 23)):
    shape = size[::-1] + ((3,) if mode == "RGB" else ())
    smooth = np.add.outer(np.arange(size[1]) * 5, np.arange(size[0]) * 3)
    values = np.broadcast_to(smooth[..., None] if mode == "RGB" else smooth, shape) % 250
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8), mode=None).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("form, steps", [("JPEG", 4), ("PNG", 0), ("WEBP", 4)])
def test_torchvision_decodes_like_pillow(monkeypatch, form, steps):
    content = encoded(form=form)
    pillow = ImageReader().read(io.BytesIO(content), "a")
    asked = []
    decode = images_module.decode_image
    monkeypatch.setattr(images_module, "decode_image", lambda *a: asked.append(1) or decode(*a))
    other = ImageReader(decoder="torchvision").read(io.BytesIO(content), "a")
    assert asked and other.mode == pillow.mode and other.size == pillow.size
    assert np.abs(np.asarray(other, int) - np.asarray(pillow, int)).max() <= steps


@pytest.mark.parametrize("content", [encoded("L"), encoded("L", "PNG"), encoded(form="BMP")])
def test_what_torchvision_would_read_otherwise_is_left_to_pillow(content):
    pillow, other = (ImageReader(decoder=name).read(io.BytesIO(content), "a") for name in ("pillow", "torchvision"))
    assert pillow.tobytes() == other.tobytes()


def test_benchmark_of_loading(image_folder, tmp_path, capsys):
    argv = ["--loader", "--data-dir", str(image_folder), "--img-size", "32", "-b", "4", "--workers", "0"]
    argv += ["--decoder", "pillow", "torchvision", "--loader-seconds", "0.05", "--needed", "1e9"]
    assert benchmark.main([*argv, "--results-file", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["decoder"], row["workers"]) for row in rows] == [("pillow", 0), ("torchvision", 0)]
    assert all(row["images_per_second"] > 0 and row["images"] >= 4 for row in rows)
    out = capsys.readouterr().out
    assert "one image in one process, of 24: read" in out and "32 x 32 px" in out
    assert "- fastest: " in out and "- not enough: --needed eats 1000000000.0 img/s" in out
    assert benchmark.main(["--loader"]) == 2
    assert "--data-dir" in capsys.readouterr().err


def test_advice():
    row = {"img_size": 224, "decoder": "pillow", "workers": 4, "images_per_second": 400.0}
    parts = dict(read_ms=0.1, pillow_ms=5.0, torchvision_ms=3.0, augment_ms=2.0, width=500.0, height=400.0)
    assert "enough: x eats 300.0 img/s, 75 % of it" in _loading.advice([row], parts, 300.0, "x", 8)[1]
    said = " ".join(_loading.advice([row], parts, 1000.0, "x", 8))
    assert "about 11 of them" in said and "more than the 8 cores" in said and "about 258 px" in said
    both = [row, row | {"decoder": "torchvision", "images_per_second": 390.0}]
    assert "--decoder torchvision decodes in 60 %" in " ".join(_loading.advice(both, parts, None, "", 8))
    slow = parts | {"read_ms": 20.0}
    assert "reading takes the most" in _loading.advice([row], slow, None, "", 8)[-1]
