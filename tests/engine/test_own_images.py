"""Photos of one's own: undivided folders, tables, and what follows from how many images there are."""

import csv
import json

import pytest

from visionssm.commands import _auto, predict, train, validate
from visionssm.engine.data.datasets import class_mapping, open_dataset
from visionssm.engine.data.own_images import held_out
from visionssm.errors import UserError

FAST = "--model test_vmamba --no-pretrained --img-size 32 --lr 2e-3 --epochs 2 --device cpu --workers 0".split()


@pytest.fixture(scope="module")
def photos(image_folder, tmp_path_factory):
    """The training images of the image folder, without their splits."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    for path in sorted((image_folder / "train").rglob("*.png")):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    return folder


def names(dataset):
    return set(dataset.filenames())


def test_a_part_of_every_class_is_held_out_always_the_same(photos):
    first, second = (open_dataset("", str(photos), split, val_fraction=0.25) for split in ("train", "validation"))
    assert len(first) == 18 and len(second) == 6 and not names(first) & names(second)
    assert {str(name).split("/")[0] for name in names(second)} == {"circle", "cross", "stripes"}
    assert class_mapping(first) == class_mapping(second) == {"circle": 0, "cross": 1, "stripes": 2}
    assert names(open_dataset("", str(photos), "val", val_fraction=0.25)) == names(second)
    # more images leave most of those that were held out where they are
    some = [f"a/{i}.jpg" for i in range(40)]
    more = some + [f"a/{i}.jpg" for i in range(40, 44)]
    before, after = held_out(some, [0] * 40, 0.25), held_out(more, [0] * 44, 0.25)
    assert len(before) == 10 and len(before & after) >= 7
    assert held_out(["a", "b"], [0, 0], 0.01) and not held_out(["a"], [0], 0.5)


def test_what_cannot_be_divided_is_said(photos, image_folder, tmp_path):
    with pytest.raises(UserError, match="--val-fraction 0.2"):
        open_dataset("", str(photos), "train")
    with pytest.raises(UserError, match="between 0 and 1"):
        open_dataset("", str(photos), "train", val_fraction=20)
    # a validation folder that is there is taken
    assert len(open_dataset("", str(image_folder), "validation", val_fraction=0.5)) == 12
    loose = tmp_path / "loose"
    loose.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.png"))[::6]):
        (loose / f"{number}.png").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="4 images in no class folder .* --labels"):
        open_dataset("", str(loose), "train", val_fraction=0.5)


@pytest.fixture
def table(photos, tmp_path):
    """The photos in one flat folder, with a table."""
    rows = []
    for path in sorted(photos.rglob("*.png")):
        name = f"{path.parent.name}_{path.stem}.png"
        (tmp_path / name).write_bytes(path.read_bytes())
        rows.append(
            {"Image": name, "label": path.parent.name.upper(), "split": "val" if path.stem in "01" else "train"}
        )
    return tmp_path, rows


def write(folder, rows, *columns):
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def test_a_table_names_classes_and_splits(table):
    folder, rows = table
    write(folder, rows, "Image", "label", "split")
    held = open_dataset("", str(folder), "validation", labels_file="labels.csv")
    assert len(held) == 6 and class_mapping(held) == {"CIRCLE": 0, "CROSS": 1, "STRIPES": 2}
    assert len(open_dataset("", str(folder), "train", labels_file=str(folder / "labels.csv"))) == 18
    with pytest.raises(UserError, match="no image of the split 'test'; it has train, val"):
        open_dataset("", str(folder), "test", labels_file="labels.csv")
    write(folder, rows, "Image", "label")
    with pytest.raises(UserError, match="no column 'split'; hold a part out"):
        open_dataset("", str(folder), "train", labels_file="labels.csv")
    assert len(open_dataset("", str(folder), "val", labels_file="labels.csv", val_fraction=0.25)) == 6
    write(folder, rows, "Image", "split")
    with pytest.raises(UserError, match="columns Image, split; expected 'image' and 'label'"):
        open_dataset("", str(folder), "train", labels_file="labels.csv")
    write(folder, [*rows, {"Image": "none.png", "label": "CROSS", "split": "train"}], "Image", "label", "split")
    with pytest.raises(UserError, match="1 of 25 files that do not exist, such as .*none.png"):
        open_dataset("", str(folder), "train", labels_file="labels.csv")


def test_a_run_says_how_its_images_were_divided(photos, tmp_path, capsys):
    assert train.main(["-c", "finetune", "--data-dir", str(photos), "--output", str(tmp_path / "run"), *FAST]) == 0
    told = capsys.readouterr().out
    assert "training: 18 of 24 images" in told and "validation: 6 of 24 images" in told
    assert "3 of 3 classes (circle, cross, stripes), 2 images each" in told
    assert "top-5" not in told, "of three classes"
    argv = ["--checkpoint", str(tmp_path / "run"), "--device", "cpu"]
    results = tmp_path / "v.json"
    assert validate.main([*argv, "--data-dir", str(photos), "--workers", "0", "--results-file", str(results)]) == 0
    (row,) = json.loads(results.read_text())
    assert row["images"] == 6, "those that the training did not see"
    held = open_dataset("", str(photos), "validation", val_fraction=0.2)
    assert predict.main([*held.filenames(absolute=True), *argv, "--results-file", str(tmp_path / "p.csv")]) == 0
    predictions = list(csv.DictReader((tmp_path / "p.csv").open()))
    right = sum(row["class_1"] == row["truth"] for row in predictions)
    assert row["top1"] == pytest.approx(100 * right / 6, abs=1e-2)


def test_another_number_of_classes_begins_a_new_head(photos, tmp_path, capsys, caplog):
    run = ["--data-dir", str(photos), "--val-fraction", "0.2", *FAST, "-b", "4"]
    assert train.main([*run, "--num-classes", "5", "--output", str(tmp_path / "five")]) == 0
    more = ["--initial-checkpoint", str(tmp_path / "five"), "--output", str(tmp_path / "three")]
    assert train.main([*run, *more]) == 0
    assert "the checkpoint's classifier is of 5 classes, the model's is of 3: it begins anew" in caplog.text


@pytest.mark.parametrize("images, batch, epochs", [(5, 4, 50), (100, 4, 50), (500, 16, 40), (10_000, 64, 10)])
def test_auto_follows_the_images(images, batch, epochs):
    assert (_auto.batch_size("auto", images), _auto.epochs("auto", images)) == (batch, epochs)
    assert (_auto.batch_size(7, images), _auto.epochs(3, images), _auto.workers(5)) == (7, 3, 5)
    assert 1 <= _auto.workers("auto") <= 4
    with pytest.raises(UserError, match="give a number"):
        _auto.batch_size("auto", None)
