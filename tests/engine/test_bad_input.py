"""What a user may get wrong: one sentence, before anything is overwritten."""

import shutil
from contextlib import nullcontext

import pytest
import torch

from visionssm.engine.data.datasets import SKIPPED, ReadableImages, open_dataset
from visionssm.engine.inference.evaluation import evaluate
from visionssm.errors import UserError


def sentence(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    "options, found",
    [
        ({"model": "vmamba_tinny_s1l8"}, "there is no model 'vmamba_tinny_s1l8'; did you mean 'vmamba_tiny_s1l8'"),
        ({"model": "test_vmamba", "model_kwargs": ["scan=rastr"]}, "raster"),
        ({"model_kwargs": ["drop_pth=0.2"]}, "drop_pth"),
        ({"opt": "adammw"}, "'adamw'"),
        ({"data_dir": "nowhere"}, "data folder nowhere does not exist"),
        ({"data_dir": None}, "name its folder with --data-dir"),
        ({"train_split": "trian"}, "has no 'trian' folder; it holds train, validation; did you mean 'train'"),
        ({"num_classes": 2}, "the data has 3 classes"),
        ({"batch_size": 500}, "too few for one batch of 500"),
        ({"mixup": 0.5, "batch_size": 3}, "must be even, found 3"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"resume": "nothing.pth.tar"}, "checkpoint nothing.pth.tar does not exist"),
        ({"initial_checkpoint": "nothing.pth"}, "checkpoint nothing.pth does not exist"),
        ({"log_wandb": True}, "pip install wandb"),
        ({"sched": "cosin"}, "cosin"),
    ],
)
def test_options(run, capsys, options, found):
    assert run(**options) == 2
    assert found in sentence(capsys)


def test_folder_without_images(run, tmp_path, capsys):
    (tmp_path / "data" / "train" / "a").mkdir(parents=True)
    assert run(data_dir=tmp_path / "data") == 2
    assert "holds no images" in sentence(capsys)


def test_different_classes_in_the_splits(run, image_folder, tmp_path, capsys):
    shutil.copytree(image_folder, tmp_path / "data")
    (tmp_path / "data" / "validation" / "cross").rename(tmp_path / "data" / "validation" / "kross")
    assert run(data_dir=tmp_path / "data") == 2
    found = sentence(capsys)
    assert "does not know 1 class(es) of the data: kross; it knows circle, cross, stripes" in found
    assert "only in the training split: cross" in found


@pytest.fixture
def damaged(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    path = tmp_path / "data" / "train" / "cross" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    return path


def test_damaged_image_is_refused_by_path_and_keeps_an_earlier_run(run, damaged, capsys):
    assert run(epochs=1) == 0
    before = (run.folder / "run" / "last.pth.tar").read_bytes()
    capsys.readouterr()
    assert run(data_dir=damaged.parents[2], overwrite=True) == 2
    assert f"image {damaged} cannot be read" in sentence(capsys)
    assert (run.folder / "run" / "last.pth.tar").read_bytes() == before


def test_damaged_image_is_skipped_by_path(run, damaged, capsys):
    assert run(data_dir=damaged.parents[2], bad_images="skip", epochs=1) == 0
    assert f"image {damaged} cannot be read" in capsys.readouterr().out


def test_skipped_image_in_an_evaluation_is_marked(damaged):
    dataset = ReadableImages(open_dataset("", str(damaged.parents[2]), "train"), lambda image: image, bad_images="skip")
    labels = [dataset[index][1] for index in range(len(dataset))]
    assert labels.count(SKIPPED) == 1
    assert len(labels) == 24


@pytest.mark.parametrize("channels", [1, 3])
def test_skipped_image_has_the_channels_of_the_others(run, image_folder, tmp_path, capsys, channels):
    shutil.copytree(image_folder, tmp_path / "data")
    victim = tmp_path / "data" / "validation" / "cross" / "1.png"
    victim.write_bytes(victim.read_bytes()[:60])
    assert run(data_dir=tmp_path / "data", bad_images="skip", epochs=1, in_chans=channels) == 0
    assert f"image {victim} cannot be read" in capsys.readouterr().out


def test_an_earlier_run_is_not_overwritten_unasked(run, capsys):
    assert run(epochs=1) == 0
    capsys.readouterr()
    assert run(epochs=1) == 2
    assert "already holds a run" in sentence(capsys)
    other = run.folder / "run" / "last.pth.tar"
    assert run("second", epochs=1) == 0
    capsys.readouterr()
    assert run("second", epochs=2, resume=other) == 2
    assert "already holds a run" in sentence(capsys)
    assert run(epochs=1, overwrite=True) == 0


@pytest.fixture
def trained(run):
    assert run(epochs=1) == 0
    return run.folder / "run" / "last.pth.tar"


def test_checkpoint_of_another_model(run, trained, capsys):
    capsys.readouterr()
    assert run("other", model="test_resnet", resume=trained) == 2
    assert "is of model 'test_vmamba', expected 'test_resnet'" in sentence(capsys)


def test_weights_of_another_model(run, trained, tmp_path, capsys):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    capsys.readouterr()
    assert run("other", initial_checkpoint=tmp_path / "weights.pth") == 2
    assert "weights.pth does not fit the model" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["resume", "initial_checkpoint"])
def test_truncated_checkpoint(run, trained, tmp_path, capsys, option):
    path = tmp_path / "short.pth.tar"
    path.write_bytes(trained.read_bytes()[:5000])
    capsys.readouterr()
    assert run("other", **{option: path}) == 2
    assert "short.pth.tar is damaged or incomplete (5000 bytes)" in sentence(capsys)


def test_checkpoint_that_would_run_code(run, tmp_path, capsys):
    torch.save({"state_dict": {}, "extra": print}, tmp_path / "code.pth")
    assert run(initial_checkpoint=tmp_path / "code.pth") == 2
    assert "could run code" in sentence(capsys)


@pytest.mark.parametrize(
    "label, said", [(3, "class index 3 but the model has 3 classes"), (-1, "class index -1 .* a split that has labels")]
)
def test_a_label_outside_the_classes_is_named(label, said):
    batches = [(torch.zeros(2, 3), torch.tensor([2, label]))]
    with pytest.raises(UserError, match=said):
        evaluate(torch.nn.Identity(), batches, torch.device("cpu"), autocast=nullcontext)
