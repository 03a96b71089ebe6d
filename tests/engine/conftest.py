"""A tiny image folder of real PNG files, and short training runs on it."""

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import is_fast_norm, set_fast_norm

from visionssm.commands import train as train_command

CLASSES = ("circle", "cross", "stripes")


def draw(kind: str, generator: np.random.Generator) -> Image.Image:
    row, column = np.mgrid[:32, :32] - generator.integers(12, 20, (2, 1, 1))
    shape = {
        "circle": row**2 + column**2 < 80,
        "cross": (abs(row) < 3) | (abs(column) < 3),
        "stripes": (row // 4) % 2 == 0,
    }[kind]
    pixels = np.where(shape[..., None], generator.integers(160, 255, 3), generator.integers(0, 90, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 4)):
        for kind in CLASSES:
            (folder / split / kind).mkdir(parents=True)
            for number in range(count):
                draw(kind, generator).save(folder / split / kind / f"{number}.png")
    return folder


BASE = {
    "model": "test_vmamba",
    "img-size": 32,
    "batch-size": 4,
    "workers": 0,
    "device": "cpu",
    "epochs": 2,
    "opt": "adamw",
    "lr": 2e-3,
    "warmup-epochs": 0,
    "log-interval": 100,
    "checkpoint-hist": 2,
}


@pytest.fixture
def run(image_folder, tmp_path):
    """Return a function that runs the training command on the image folder and returns its exit code."""

    def call(output: str = "run", **options) -> int:
        options = (
            BASE
            | {"data-dir": image_folder, "output": tmp_path / output}
            | {name.replace("_", "-"): value for name, value in options.items()}
        )
        argv = []
        for name, value in options.items():
            if value is True:
                argv.append(f"--{name}")
            elif isinstance(value, list):
                argv += [f"--{name}", *map(str, value)]
            elif value is not None and value is not False:
                argv += [f"--{name}", str(value)]
        return train_command.main(argv)

    call.folder = tmp_path
    return call


@pytest.fixture(autouse=True)
def unchanged_global_state():
    """Leave the generators, the log handlers and timm's fast norms as they were."""
    handlers = list(logging.getLogger().handlers)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    fast_norm = is_fast_norm()
    yield
    set_fast_norm(fast_norm)
    logging.getLogger().handlers[:] = handlers
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def load(path: Path) -> dict:
    from visionssm.checkpoints import read_content

    return read_content(path)


def assert_same_weights(one: Path, other: Path) -> None:
    """Assert that two checkpoints hold bit-equal weights, averaged weights and optimizer states."""
    first, second = load(one), load(other)
    for key in ("state_dict", "state_dict_ema"):
        assert (key in first) == (key in second)
        for name, value in first.get(key, {}).items():
            assert torch.equal(value, second[key][name]), f"{key} {name} differs"
    for index, state in first["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second["optimizer"]["state"][index][name]))
