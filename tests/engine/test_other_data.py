"""Data sets other than folders and tar files: webdataset shards and Hugging Face data sets, from local files."""

import csv
import io
import json
import os
import signal
import tarfile
import time
from multiprocessing import active_children

import pytest
import torch
from conftest import CLASSES, assert_same_weights, load
from test_training import StopAfter

from visionssm.commands import _training as train_module
from visionssm.commands import validate
from visionssm.commands._arguments import parse_args
from visionssm.commands._options import TrainOptions
from visionssm.engine.data import datasets as datasets_module
from visionssm.engine.data import loaders
from visionssm.engine.data.processes import World
from visionssm.engine.data.workers import LoaderProcessError
from visionssm.engine.training import stopping


@pytest.fixture
def shards(image_folder, tmp_path):
    """The image folder as webdataset shards: <key>.png beside <key>.cls, and the file that tells the sizes."""
    pytest.importorskip("webdataset", reason="webdataset is not installed; it comes with the extra 'data'")
    folder = tmp_path / "shards"
    folder.mkdir()
    splits = {}
    for split in ("train", "validation"):
        paths = sorted((image_folder / split).rglob("*.png"), key=lambda path: path.name)
        halves = {f"{split}-{number}.tar": paths[number::2] for number in (0, 1)}
        for name, members in halves.items():
            with tarfile.open(folder / name, "w") as archive:
                for path in members:
                    key = f"{path.parent.name}-{path.stem}"
                    label = str(CLASSES.index(path.parent.name)).encode()
                    for ending, content in (("png", path.read_bytes()), ("cls", label)):
                        entry = tarfile.TarInfo(f"{key}.{ending}")
                        entry.size = len(content)
                        archive.addfile(entry, io.BytesIO(content))
        splits[split] = {
            "name": split,
            "filenames": list(halves),
            "shard_lengths": [len(members) for members in halves.values()],
            "num_samples": len(paths),
        }
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    return folder


WDS = dict(dataset="wds/shapes", num_classes=3, workers=1)


def test_webdataset_trains_evaluates_and_resumes(run, shards, monkeypatch):
    """A run stopped inside an epoch goes on where it stopped."""
    assert run(data_dir=shards, epochs=8, scale=[0.8, 1.0], smoothing=0.0, color_jitter=0.0, **WDS) == 0
    rows = list(csv.DictReader((run.folder / "run" / "summary.csv").open()))
    assert len(rows) == 8 and float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "StopRequest", lambda: StopAfter(3))
        assert run("cut", data_dir=shards, **WDS) == 128 + signal.SIGTERM
    assert run("cut", data_dir=shards, resume="auto", **WDS) == 0
    assert load(run.folder / "cut" / "last.pth.tar")["epoch"] == 1

    argv = ["--checkpoint", str(run.folder / "run" / "last.pth.tar"), "--data-dir", str(shards), "--device", "cpu"]
    results = run.folder / "results.json"
    argv += ["--dataset", "wds/shapes", "--workers", "1", "--batch-size", "4", "--results-file", str(results)]
    assert validate.main(argv) == 0
    (row,) = json.loads(results.read_text())
    assert row["images"] == 12
    assert row["top1"] == pytest.approx(float(rows[-1]["eval_top1"]), abs=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_processes_of_a_stream_leave_signals_to_the_training(shards, training):
    """A scheduler signals the whole group; the training needs its loader processes to finish its step."""
    argv = ["--dataset", "wds/shapes", "--data-dir", str(shards), "--batch-size", "4", "--workers", "1"]
    args, config, device = parse_args(argv), {"input_size": (3, 32, 32)}, torch.device("cpu")
    config |= {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": None}
    options = TrainOptions.of(args)
    data = train_module.open_split(options.data, training=training)
    if training:
        stream = train_module.create_loader(data, options, config, 3, device, World()).batches.loader
    else:
        stream = loaders.create_eval_loader(data, config, batch_size=4, workers=1, device=device).loader
    batches = iter(getattr(stream, "loader", stream))
    next(batches)
    (worker,) = active_children()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, number)
    assert len(list(batches)) == (5 if training else 2)
    del batches


def test_dead_process_of_a_stream(shards):
    """Between two batches nothing is raised; then it is one sentence."""
    argv = ["--dataset", "wds/shapes", "--data-dir", str(shards), "--batch-size", "1", "--workers", "1"]
    args, config, device = parse_args(argv), {"input_size": (3, 32, 32)}, torch.device("cpu")
    config |= {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": None}
    options = TrainOptions.of(args)
    data = train_module.open_split(options.data, training=True)
    loader = train_module.create_loader(data, options, config, 3, device, World())
    batches = loader.epoch(0)
    next(batches)
    (worker,) = active_children()
    worker.kill()
    time.sleep(0.5)  # the signal arrives here
    with pytest.raises(LoaderProcessError, match="a loader process died .*killed by signal: Killed"):
        list(batches)


def test_hugging_face_data_set_trains_like_the_folder(run, image_folder, tmp_path, monkeypatch):
    """By the path of a local folder; by a name on the hub it would be downloaded, which needs the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets", reason="datasets is not installed; it comes with the extra 'data'")
    options = dict(dataset=f"hfds/{image_folder}", data_dir=tmp_path / "cache", workers=1)
    assert run("folder", epochs=1) == 0
    assert run("hugging", epochs=1, **options) == 0
    assert_same_weights(run.folder / "folder" / "last.pth.tar", run.folder / "hugging" / "last.pth.tar")


@pytest.mark.parametrize("dataset, package", [("wds/shapes", "webdataset"), ("hfds/shapes", "datasets")])
def test_missing_package_is_named(run, monkeypatch, capsys, dataset, package):
    monkeypatch.setattr(datasets_module, "find_spec", lambda name: None)
    assert run(dataset=dataset) == 2
    error = capsys.readouterr().err.strip()
    assert f"needs the package {package!r}; install it with: pip install 'visionssm[data]'" in error
    assert len(error.splitlines()) == 1
