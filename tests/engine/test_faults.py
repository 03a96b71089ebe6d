"""What long runs meet: kills, full disks, dead loader processes, dead peers."""

import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BASE, load

from visionssm.engine.data.datasets import ReadableImages

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(image_folder, output, **options):
    options = (
        BASE
        | {"data-dir": image_folder, "output": output}
        | {name.replace("_", "-"): value for name, value in options.items()}
    )
    flags = [
        text for name, value in options.items() for text in (f"--{name}", *([] if value is True else [str(value)]))
    ]
    return [sys.executable, str(ROOT / "tools" / "train.py"), *flags]


def fault_run(*options):
    script = Path(__file__).parent / "fault_run.py"
    result = subprocess.run([sys.executable, str(script), *options], env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "bit-equal" in result.stdout


def test_five_kills_end_in_the_weights_of_an_uninterrupted_run():
    fault_run("--kills", "5", "--images", "32")


@pytest.mark.slow
def test_twenty_kills_end_in_the_weights_of_an_uninterrupted_run():
    fault_run("--kills", "20")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_whole_process_group_stores_and_exits(image_folder, tmp_path, number):
    """As a terminal or a scheduler sends it: the loader processes get it too."""
    argv = command(image_folder, tmp_path / "run", epochs=500, workers=2, log_interval=1)
    process = subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if line.startswith("epoch 2"):
            break
    os.killpg(process.pid, number)
    rest = process.stdout.read()
    assert process.wait() == 128 + number, rest
    assert f"stopped by {number.name}" in rest
    assert list((tmp_path / "run").glob("recovery-*.pth.tar")) or "stored" not in rest


def test_full_disk_keeps_the_last_good_checkpoint(image_folder, tmp_path):
    argv = command(image_folder, tmp_path / "run", epochs=1)
    assert subprocess.run(argv, env=ENVIRONMENT, capture_output=True).returncode == 0
    folder = tmp_path / "run"
    before = (folder / "last.pth.tar").read_bytes()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    argv = command(image_folder, folder, epochs=2, resume="auto")
    result = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, preexec_fn=limit)
    assert result.returncode == 2
    assert "tmp.pth.tar cannot be written" in result.stderr
    assert "continue from it with --resume auto" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert (folder / "last.pth.tar").read_bytes() == before
    assert not list(folder.glob(".*tmp"))
    assert subprocess.run(argv, env=ENVIRONMENT, capture_output=True).returncode == 0


KILLED_READING = """
import os, runpy, signal, sys
from visionssm.engine.data.datasets import ReadableImages

read = ReadableImages.__getitem__

def deadly(self, key):
    if isinstance(key, tuple) and key[0] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, key)

ReadableImages.__getitem__ = deadly
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

KILLED_HANDING_OVER = """
import os, runpy, signal, sys, time
from multiprocessing import reduction
from visionssm.engine.data.datasets import ReadableImages

read = ReadableImages.__getitem__

def die(connection, *_):
    connection.close()  # as the system does it, before the parent can hear of the death
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)

def deadly(self, key):
    if isinstance(key, tuple) and key[0] == 5:
        reduction.send_handle = die
    return read(self, key)

ReadableImages.__getitem__ = deadly
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

KILLED_WHILE_WRITING = """
import multiprocessing, os, runpy, signal, sys, time
from timm.utils import CheckpointSaver

write = CheckpointSaver._save

def deadly(self, *args):
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.5)  # the signal arrives here
    write(self, *args)

CheckpointSaver._save = deadly
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "script",
    [KILLED_READING, KILLED_HANDING_OVER, KILLED_WHILE_WRITING],
    ids=["reading", "handing-over", "while-writing"],
)
def test_dead_loader_process(image_folder, tmp_path, script):
    """One sentence wherever the death is noticed, and a checkpoint being written then is complete."""
    argv = command(image_folder, tmp_path / "run", workers=1, batch_size=2, recovery_interval=2)
    result = subprocess.run([argv[0], "-c", script, *argv[1:]], env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "a loader process died" in result.stderr and "in epoch 0 after step" in result.stderr
    assert "killed by signal: Killed" in result.stderr and "--resume auto" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    if script == KILLED_WHILE_WRITING:
        assert [load(path)["epoch"] for path in (tmp_path / "run").glob("recovery-0-2.pth.tar")] == [-1]
    resumed = subprocess.run([*argv, "--resume", "auto"], env=ENVIRONMENT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr


def test_image_that_vanished_is_named_from_a_loader_process(run, image_folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(image_folder, tmp_path / "data")
    victim = tmp_path / "data" / "train" / "stripes" / "2.png"
    start = ReadableImages.__init__

    def vanish(self, *args, **kwargs):
        start(self, *args, **kwargs)
        victim.unlink(missing_ok=True)

    monkeypatch.setattr(ReadableImages, "__init__", vanish)
    assert run(data_dir=tmp_path / "data", workers=2) == 2
    error = capsys.readouterr().err
    assert f"image {victim} cannot be read" in error
    assert len(error.strip().splitlines()) == 1
    assert not multiprocessing.active_children()  # the interpreter would wait for them


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_pair(argv):
    port = free_port()
    return [
        subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_PORT": port,
                "MASTER_ADDR": "127.0.0.1",
            },
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "silent"])
def test_lost_peer_ends_the_others_with_a_sentence(image_folder, tmp_path, number):
    argv = command(image_folder, tmp_path / "run", epochs=500, log_interval=1, dist_timeout=15)
    first, second = start_pair(argv)
    try:
        for line in first.stdout:
            if line.startswith("epoch 2"):
                break
        second.send_signal(number)
        first.stdout.read()
        error = first.stderr.read()
        assert first.wait() == 2, error
        assert "lost contact with another one" in error and "--resume auto" in error
    finally:
        second.kill()
        second.wait()


def test_sigterm_to_two_processes_stores_one_state(image_folder, tmp_path):
    argv = command(image_folder, tmp_path / "run", epochs=500, batch_size=2, log_interval=1)
    pair = start_pair(argv)
    for line in pair[0].stdout:
        if line.startswith("epoch 2"):
            break
    time.sleep(0.2)
    pair[0].terminate()  # one of them is enough
    outputs = [process.communicate() for process in pair]
    assert [process.returncode for process in pair] == [143, 143], outputs
    checkpoints = {path.name for path in (tmp_path / "run").glob("*.pth.tar")}
    assert "last.pth.tar" in checkpoints


def test_two_processes_give_the_losses_of_one_with_the_double_batch(image_folder, tmp_path):
    """Augmentation and drop path off, no batch norm: the same samples per step give the same losses to 1e-5."""
    options = dict(no_aug=True, epochs=2, log_interval=1, drop_path=0.0, sched_on_updates=True)
    argv = command(image_folder, tmp_path / "one", batch_size=6, **options)
    assert subprocess.run(argv, env=ENVIRONMENT, capture_output=True).returncode == 0
    pair = start_pair(command(image_folder, tmp_path / "two", batch_size=3, **options))
    outputs = [process.communicate() for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs

    def losses(name):
        lines = (tmp_path / name / "summary.csv").read_text().splitlines()[1:]
        return [tuple(map(float, line.split(",")[1:3])) for line in lines]

    one, two = losses("one"), losses("two")
    assert len(one) == 2
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
