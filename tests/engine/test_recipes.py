"""Recipe files: checked key by key, below the command line."""

import pytest

from visionssm.commands._arguments import parse_args
from visionssm.errors import UserError


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_command_line_wins_over_recipe_and_recipe_over_default(tmp_path):
    path = recipe(tmp_path, "lr: 1e-3\nepochs: 7\ninput_size: [3, 32, 32]\nmodel_kwargs: {scan: raster}\namp: true\n")
    args = parse_args(["-c", path, "--epochs", "9"])
    assert (args.lr, args.epochs, args.momentum) == (1e-3, 9, 0.9)
    assert args.input_size == [3, 32, 32]
    assert args.model_kwargs == {"scan": "raster"}
    assert args.amp is True


@pytest.mark.parametrize(
    "text, found",
    [
        ("warmup_epoch: 3", "'warmup_epochs'"),
        ("batch-size: 3", "'batch_size'"),
        ("epochs: many", "expected int"),
        ("epochs: 3.5", "expected int"),
        ("epochs: true", "expected int"),
        ("amp: 1", "true or false"),
        ("input_size: [3, 32]", "2 values, expected 3"),
        ("scale: 0.5", "expected a list"),
        ("clip_mode: nrom", "did you mean 'norm'"),
        ("model_kwargs: raster", "expected a mapping"),
        ("- a\n- b", "list, expected 'key: value' lines"),
        ("a: [", "is not YAML"),
    ],
)
def test_wrong_recipe_is_refused_with_a_hint(tmp_path, text, found):
    with pytest.raises(UserError, match=found.replace("[", r"\[")):
        parse_args(["-c", recipe(tmp_path, text)])


def test_missing_recipe_is_named():
    with pytest.raises(UserError, match="nowhere.yaml cannot be read"):
        parse_args(["-c", "nowhere.yaml"])


def test_data_folder_as_timm_takes_it():
    assert parse_args(["images", "--epochs", "2"]).data_dir == parse_args(["--data-dir", "images"]).data_dir == "images"
    with pytest.raises(UserError, match="two data folders given: a and --data-dir b"):
        parse_args(["a", "--data-dir", "b"])
