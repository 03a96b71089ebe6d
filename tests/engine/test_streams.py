"""Streams: who reads what, positions, what fails; and the command that writes shards."""

import itertools
import json
import shutil
import signal
import tarfile
from collections import Counter

import pytest
from conftest import assert_same_weights, load
from test_training import StopAfter

from visionssm.commands import shards as shards_command
from visionssm.engine.data import datasets, loaders, streams
from visionssm.engine.data.sampling import StreamBatches, StreamEvaluation
from visionssm.engine.data.streams import ShardError, Shards, StreamedImages, enterable, samples_of_tar
from visionssm.engine.training import stopping

LENGTHS = [7, 1, 12, 30, 5, 9, 0, 21]


class Numbers(Shards):
    """Shards without files, whose samples are their numbers."""

    def __init__(self, lengths=LENGTHS):
        super().__init__([str(i) for i in range(len(lengths))], lengths, ("png",), lambda parts: 0)

    def _read(self, shard, first, count, cursor):
        assert 0 <= first and 0 < count <= self.lengths[shard] - first
        return [self.firsts[shard] + first + i for i in range(count)]


def read(sampler, epoch, first=0, source=None, seed=3):
    """The numbers of every batch of a sampler."""
    images = StreamedImages(source or Numbers(), None, seed=seed)
    sampler.start_at(epoch, first)
    return [[images._window(address)[address.place] for address in batch] for batch in sampler]


@pytest.mark.parametrize("world, batch, lanes, window", [(1, 4, 1, 8), (2, 3, 2, 5), (4, 2, 3, 1000), (3, 5, 4, 1)])
def test_an_epoch_has_every_sample_once_but_those_that_fill_no_step(world, batch, lanes, window):
    epochs = []
    for epoch in (0, 1):
        samplers = [
            StreamBatches(sum(LENGTHS), batch, rank=rank, world_size=world, lanes=lanes, window=window)
            for rank in range(world)
        ]
        found = [read(sampler, epoch) for sampler in samplers]
        assert {len(batches) for batches in found} == {len(samplers[0])}
        numbers = [number for batches in found for part in batches for number in part]
        assert len(set(numbers)) == len(numbers) == sum(LENGTHS) // (batch * world) * batch * world
        epochs.append(numbers)
    assert epochs[0] != epochs[1]


def test_positions_are_exact_over_three_resumes_on_other_processes():
    """Whoever goes on reads the rest, step by step, whatever numbers of processes and lanes it has of its own."""
    whole = [StreamBatches(sum(LENGTHS), 4, rank=rank, world_size=2, lanes=2, window=6) for rank in range(2)]
    expected = [sorted(sum(parts, [])) for parts in zip(*(read(s, 5) for s in whole), strict=True)]
    layout = whole[0].layout()
    found, begins = [], (0, 3, 4, 8, len(expected))
    for world, begin, end in zip((2, 4, 1, 2), begins, begins[1:], strict=False):
        samplers = [StreamBatches(sum(LENGTHS), 8 // world, rank=r, world_size=world, lanes=5) for r in range(world)]
        for sampler in samplers:
            sampler.adopt(layout, 8)
        parts = [read(sampler, 5, begin)[: end - begin] for sampler in samplers]
        found += [sorted(sum(step, [])) for step in zip(*parts, strict=True)]
    assert found == expected


@pytest.mark.parametrize("world, lanes", [(1, 1), (2, 3), (5, 2), (40, 4)])
def test_an_evaluation_has_every_sample_once(world, lanes):
    numbers = []
    for rank in range(world):
        sampler = StreamEvaluation(sum(LENGTHS), 4, rank=rank, world_size=world, lanes=lanes)
        images = StreamedImages(Numbers(), None)
        batches = [[images._window(a)[a.place] for a in batch] for batch in sampler]
        assert len(batches) == len(sampler)
        numbers += sum(batches, [])
    assert sorted(numbers) == list(range(sum(LENGTHS)))


@pytest.fixture(scope="module")
def shards(image_folder, tmp_path_factory):
    """The image folder as shards of a few images, written by the command."""
    pytest.importorskip("webdataset", reason="webdataset is not installed; it comes with the extra 'data'")
    folder = tmp_path_factory.mktemp("shards")
    assert shards_command.main(["--data-dir", str(image_folder), "--output", str(folder), "--megabytes", "0.008"]) == 0
    return folder


def test_command_writes_what_verification_and_timm_read(image_folder, shards, capsys):
    info = json.loads((shards / "_info.json").read_text())
    train = info["splits"]["train"]
    assert sum(train["shard_lengths"]) == train["num_samples"] == 24 and len(train["filenames"]) > 3
    assert info["class_to_idx"] == {"circle": 0, "cross": 1, "stripes": 2}
    assert shards_command.main(["--verify", str(shards), "--data-dir", str(image_folder)]) == 0
    assert "36 samples, 0 shard(s) with mistakes" in capsys.readouterr().out
    dataset = datasets.open_dataset("wds/shapes", str(shards), "train", is_training=True)
    assert datasets.class_names(dataset) == ["circle", "cross", "stripes"]
    source = enterable(dataset)
    raw = source.read(-1, 0, 0, 24, {})
    pixels = {(image_folder / "train" / kind / f"{n}.png").read_bytes(): i for i, kind in
              enumerate(info["class_to_idx"]) for n in range(8)}  # fmt: skip
    assert Counter(pixels[sample.image] == sample.label for sample in raw) == {True: 24}


def test_verification_and_index(image_folder, shards, tmp_path, capsys):
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    first, second = json.loads((folder / "_info.json").read_text())["splits"]["train"]["filenames"][:2]
    (folder / first).write_bytes((folder / first).read_bytes()[:3000])
    other = tmp_path / "other"
    shutil.copytree(image_folder, other)
    with tarfile.open(folder / second) as archive:
        number = int(archive.getnames()[0].split(".")[0])
    paths = sorted((other / "train").rglob("*.png"), key=lambda p: (p.parent.name, int(p.stem)))
    shutil.copy(image_folder / "validation" / "cross" / "0.png", paths[number])
    assert shards_command.main(["--verify", str(folder), "--data-dir", str(other)]) == 1
    captured = capsys.readouterr()
    assert f"{first}: cannot be read" in captured.out and "3 shard(s) with mistakes" in captured.err
    assert f"{second}: sample {number:09d} differs from {paths[number]}" in captured.out
    (folder / first).unlink()
    (folder / "_info.json").unlink()
    assert shards_command.main(["--index", str(folder)]) == 0
    info = json.loads((folder / "_info.json").read_text())["splits"]
    assert set(info) == {"train", "validation"} and info["validation"]["num_samples"] == 12
    assert shards_command.main(["--data-dir", str(image_folder), "--output", str(folder)]) == 2
    assert "give --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("times, ends", [(2, False), (3, True)])
def test_a_shard_that_fails_is_tried_again_and_then_named(shards, monkeypatch, times, ends):
    """It goes on at the sample where it failed."""
    source = enterable(datasets.open_dataset("wds/shapes", str(shards), "train", is_training=True))
    expected = source.read(-1, 0, 0, 24, {})
    victim, failures = source.urls[1], iter(range(times))

    def flaky(stream, first=0, *, seekable=False):
        for i, sample in enumerate(samples_of_tar(stream, first, seekable=seekable)):
            if stream.name == victim and first + i == 2 and next(failures, None) is not None:
                raise OSError("connection reset")
            yield sample

    monkeypatch.setattr(streams, "samples_of_tar", flaky)
    monkeypatch.setattr(streams, "PAUSE", 0.0)
    if ends:
        with pytest.raises(
            ShardError, match=rf"shard {victim} cannot be read at sample 2 after 3 attempts: connection"
        ):
            source.read(-1, 0, 0, 24, {})
    else:
        assert source.read(-1, 0, 0, 24, {}) == expected


def test_a_shard_shorter_than_listed_is_named(shards, tmp_path, capsys, run, monkeypatch):
    monkeypatch.setattr(streams, "PAUSE", 0.0)
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    info = json.loads((folder / "_info.json").read_text())
    info["splits"]["train"]["shard_lengths"][0] += 1
    info["splits"]["train"]["num_samples"] += 1
    (folder / "_info.json").write_text(json.dumps(info))
    assert run(data_dir=folder, dataset="wds/shapes", epochs=1) == 2
    error = capsys.readouterr().err
    assert (
        "train-000000.tar cannot be read at sample" in error
        and "it ends after" in error
        and len(error.strip().splitlines()) == 1
    )


def test_a_run_on_shards_stopped_thrice_equals_one_that_was_not(run, shards, monkeypatch):
    """Bit for bit, with other numbers of loader processes; the position and the pieces come from the checkpoint."""
    options = dict(data_dir=shards, dataset="wds/shapes", aa="rand-m5", reprob=0.3, mixup=0.4)
    monkeypatch.setattr(loaders, "WINDOW", 5)
    assert run("whole", **options, workers=2) == 0
    for looks, workers in ((2, 2), (3, 1), (5, 0)):
        with monkeypatch.context() as patch:
            patch.setattr(stopping, "StopRequest", lambda looks=looks: StopAfter(looks))
            code = run("cut", **options, resume="auto" if looks > 2 else None, workers=workers)
            assert code == 128 + signal.SIGTERM
    assert run("cut", **options, resume="auto", workers=3) == 0
    assert_same_weights(run.folder / "whole" / "last.pth.tar", run.folder / "cut" / "last.pth.tar")
    facts = load(run.folder / "cut" / "last.pth.tar")["task_state"]["run"]["facts"]
    assert facts["stream"] == {"processes": 1, "lanes": 2, "window": 5} and facts["classes"] == list(
        ("circle", "cross", "stripes")
    )


def hugging_face(count, shards, lanes):
    hf = pytest.importorskip("datasets", reason="datasets is not installed; it comes with the extra 'data'")

    def rows(parts):
        for part in parts:
            yield from ({"image": str(n), "label": n % 3} for n in range(part, count, shards))

    stream = hf.IterableDataset.from_generator(rows, gen_kwargs={"parts": list(range(shards))})
    source = streams.HuggingFaceStream(stream, count, "image", lambda row: row["label"], "numbers")
    return [
        lambda first, n, lane=lane: [int(raw.image) for raw in source.read(0, 1, first, n, {"lane": (lane, lanes)})]
        for lane in range(lanes)
    ]


@pytest.mark.parametrize("shards, lanes", [(4, 4), (8, 2), (2, 4), (1, 3)])
def test_lanes_of_a_hugging_face_stream_share_it(shards, lanes):
    """Of shards as long as each other every lane has its part, whole, and may be entered anywhere."""
    parts = [read(0, 24 // lanes) for read in hugging_face(24, shards, lanes)]
    assert sorted(itertools.chain(*parts)) == list(range(24))
    first = hugging_face(24, shards, lanes)[0]
    assert first(3, 2) == parts[0][3:5]
    assert first(24 // lanes, 1) == parts[0][:1]  # begins again


def test_a_run_on_a_hugging_face_stream_stopped_inside_an_epoch_equals_one_that_was_not(
    run, image_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets", reason="datasets is not installed; it comes with the extra 'data'")
    options = dict(dataset=f"hfids/{image_folder}", data_dir=tmp_path / "cache", workers=1, num_classes=3)
    options |= dict(train_num_samples=24, val_num_samples=12, epochs=1, aa="rand-m5")
    assert run("whole", **options) == 0
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "StopRequest", lambda: StopAfter(3))
        assert run("cut", **options) == 128 + signal.SIGTERM
    assert [path.name for path in (run.folder / "cut").glob("*.pth.tar")] == ["recovery-0-4.pth.tar"]
    assert run("cut", **options, resume="auto") == 0
    assert_same_weights(run.folder / "whole" / "last.pth.tar", run.folder / "cut" / "last.pth.tar")


def test_failures_at_several_samples_are_no_failure_of_one(monkeypatch):
    monkeypatch.setattr(streams, "PAUSE", 0.0)
    left = {2, 4, 6, 8}  # each fails once

    def begin(first):
        for number in range(first, 10):
            if number in left:
                left.remove(number)
                raise OSError("connection reset")
            yield number

    assert streams.read_on({}, "shard", 0, 10, begin, "it") == list(range(10))
    assert not left
