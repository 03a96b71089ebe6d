"""Scenes of digits: annotations agree with each other and with the pixels, splits share no digit, runs repeat."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'visionssm[demo]'")

from visionssm.digits import scenes as digit_scenes  # noqa: E402
from visionssm.digits.images import digit_images  # noqa: E402
from visionssm.digits.scenes import draw_scene, write_scenes  # noqa: E402
from visionssm.errors import UserError  # noqa: E402

TOOL = Path(__file__).resolve().parents[2] / "tools" / "prepare_digits.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=12, validation=6)
    return folder


def decode(segmentation):
    height, width = segmentation["size"]
    values = np.arange(len(segmentation["counts"])) % 2
    return np.repeat(values, segmentation["counts"]).reshape((height, width), order="F").astype(bool)


@pytest.mark.parametrize("split, scenes", [("train", 12), ("validation", 6)])
def test_annotations_agree(folder, split, scenes):
    content = json.loads((folder / f"instances_{split}.json").read_text())
    assert len(content["images"]) == len(list((folder / "images" / split).glob("*.png"))) == scenes
    assert [c["name"] for c in content["categories"]] == [str(i) for i in range(10)]
    assert len({a["id"] for a in content["annotations"]} - {0}) == len(content["annotations"])
    assert len({(i["height"], i["width"]) for i in content["images"]}) > 1, "scenes vary in size"
    for image in content["images"]:
        pixels = np.asarray(Image.open(folder / "images" / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        labels = np.asarray(Image.open(folder / "annotations" / split / image["file_name"]))
        expected = np.zeros_like(labels)
        instances = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert instances
        for instance in instances:
            mask = decode(instance["segmentation"])
            assert not expected[mask].any(), "instances do not overlap"
            expected[mask] = instance["category_id"]
            left, top, width, height = instance["bbox"]
            assert mask[top : top + height, left : left + width].sum() == mask.sum() == instance["area"]
            for edge in (mask[top], mask[top + height - 1], mask[:, left], mask[:, left + width - 1]):
                assert edge.any(), "the box is tight"
        assert (labels == expected).all()


def test_masks_cover_the_ink():
    scene = draw_scene(digit_images(8), np.random.default_rng(3))
    for mask in scene.masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        inside, around = scene.image[box][mask[box]], scene.image[box][~mask[box]]
        assert inside.mean() > around.mean() + 20


def test_splits_draw_from_different_digits(tmp_path, monkeypatch):
    pools = {}
    original = digit_scenes._write_split

    def write_split(folder, split, digits, *args):
        pools[split] = {np.asarray(image).tobytes() for image, _ in digits}
        return original(folder, split, digits, *args)

    monkeypatch.setattr(digit_scenes, "_write_split", write_split)
    write_scenes(tmp_path, train=1, validation=1)
    assert len(pools["train"]) > len(pools["validation"]) > 100
    assert not pools["train"] & pools["validation"]


def test_repeats_and_is_left_alone(folder, tmp_path):
    again = write_scenes(tmp_path, train=12, validation=6)
    manifest = json.loads((folder / "scenes.json").read_text())
    assert again == manifest
    assert write_scenes(tmp_path / "other", train=12, validation=6, seed=1)["sha256"] != manifest["sha256"]
    kept = (tmp_path / "images" / "train" / "0000.png").stat().st_mtime_ns
    write_scenes(tmp_path, train=12, validation=6)
    assert (tmp_path / "images" / "train" / "0000.png").stat().st_mtime_ns == kept
    (tmp_path / "images" / "train" / "0000.png").unlink()
    assert write_scenes(tmp_path, train=12, validation=6) == manifest, "a damaged set is made anew"


def test_refuses_what_is_not_its_own(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="not prepared here"):
        write_scenes(tmp_path, train=1, validation=1)
    with pytest.raises(UserError, match="at least one scene"):
        write_scenes(tmp_path / "new", train=0)


def test_tool(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, TOOL, "--output", tmp_path / "set", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    result = run("--scenes", "--num-train", "2", "--num-validation", "1")
    assert result.returncode == 0, result.stderr
    assert "2 train, 1 validation scenes" in result.stdout
    assert run("--num-train", "2").returncode == 2
