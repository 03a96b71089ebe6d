"""The digits data set: real files, a fixed split, nothing in both parts."""

import hashlib

import pytest
from PIL import Image

from visionssm.digits.images import MANIFEST, write_classification
from visionssm.errors import UserError


def hashes(folder):
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return folder, write_classification(folder)


def test_train_and_validation_are_disjoint_by_hash(digits):
    folder, manifest = digits
    train, validation = hashes(folder / "train"), hashes(folder / "validation")
    assert not train & validation
    assert len(train) == manifest["images"]["train"]
    assert len(validation) == manifest["images"]["validation"]
    assert len(train) + len(validation) == 1797


def test_every_class_is_in_both_parts(digits):
    folder, _ = digits
    for split in ("train", "validation"):
        counts = {place.name: len(list(place.iterdir())) for place in (folder / split).iterdir()}
        assert sorted(counts) == list("0123456789")
        assert max(counts.values()) < 1.2 * min(counts.values())
    with Image.open(next(folder.rglob("*.png"))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))


def test_again_gives_the_same_and_repairs_what_changed(digits):
    folder, manifest = digits
    assert write_classification(folder) == manifest
    next((folder / "train" / "3").iterdir()).unlink()
    assert write_classification(folder) == manifest
    assert len(list(folder.rglob("*.png"))) == 1797


def test_another_seed_gives_another_split(tmp_path, digits):
    other = write_classification(tmp_path, seed=1)
    assert other["images"] == digits[1]["images"]
    assert other["sha256"] != digits[1]["sha256"]


def test_an_attempt_cut_short_is_repeated(tmp_path, digits):
    write_classification(tmp_path)
    (tmp_path / "validation").rename(tmp_path / ".unfinished")
    assert write_classification(tmp_path) == digits[1]


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "train" / "cats").mkdir(parents=True)
    with pytest.raises(UserError, match="not prepared here"):
        write_classification(tmp_path)
    assert not (tmp_path / MANIFEST).exists()
