"""Runs that survive what they run on: restarts by torchrun, requeueing by SLURM, nodes that die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import Processes, flags, free_port

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

DIES_ONCE = """
import os, signal, sys, threading, time
from pathlib import Path

def die():
    output = Path(sys.argv[sys.argv.index("--output") + 1])
    while not any(path for path in output.glob("recovery-0-*") if not path.name.startswith(".")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    threading.Thread(target=die, daemon=True).start()
from visionssm.commands.train import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_torchrun_restarts_a_run_that_lost_a_process(image_folder, tmp_path, sharded):
    """Without --resume, which a restart means by itself."""
    script = tmp_path / "train.py"
    script.write_text(DIES_ONCE)
    options = dict(data_dir=image_folder, output=tmp_path / "run", batch_size=2, recovery_interval=1, log_interval=1)
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    argv += ["--master-port", str(free_port()), str(script), *flags(**options, fsdp=sharded)]
    result = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "continuing" in result.stdout and "at epoch 0, step" in result.stdout
    assert (tmp_path / "run" / "summary.csv").read_text().count("\n") == 3
    assert (tmp_path / "run" / "last.pth.tar").is_file()


@pytest.mark.slow
def test_slurm_requeues_a_run_that_it_signalled(image_folder, tmp_path):
    """srun's stand-in starts the training, and the first time sends it the signal of the time limit."""
    script = ROOT / "tools" / "slurm" / "train.sbatch"
    run = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(
        "model: test_vmamba\nimg_size: 32\nbatch_size: 4\nworkers: 0\ndevice: cpu\nepochs: 2\nlog_interval: 1\n"
        "recovery_interval: 1\nwarmup_epochs: 0\n"
    )
    (tmp_path / "srun").write_text(
        f"""#!/bin/bash
shift  # --kill-on-bad-exit
"$@" & process=$!
if [ ! -e {tmp_path}/signalled ]; then
    touch {tmp_path}/signalled
    until compgen -G "{run}/recovery-0-*" > /dev/null; do sleep 0.05; done
    kill -TERM $process
fi
wait $process
"""
    )
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/scontrol.txt\necho node1\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    environment = ENVIRONMENT | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
    }
    argv = ["bash", str(script), str(tmp_path / "recipe.yaml"), str(image_folder), str(run)]
    codes = [subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True).returncode for _ in range(2)]
    assert codes == [143, 0]
    assert (tmp_path / "scontrol.txt").read_text().count("requeue 7") == 1
    assert (run / "summary.csv").read_text().count("\n") == 3


@pytest.mark.slow
def test_five_kills_of_a_sharded_run_end_in_the_weights_of_an_uninterrupted_one():
    argv = [sys.executable, str(Path(__file__).parent / "sharded_fault_run.py"), "--kills", "5", "--images", "16"]
    result = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "are bit-equal" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "silent"])
def test_a_lost_node_ends_a_sharded_run_with_a_sentence(image_folder, tmp_path, number):
    options = dict(data_dir=image_folder, output=tmp_path / "run", fsdp=True, epochs=500, log_interval=1)
    processes = Processes(flags(**options, dist_timeout=15), 2, tmp_path / "log")
    processes.until(lambda: "epoch 1/499  step" in processes.text())
    processes.send(1, number)
    end = time.monotonic() + 60  # four times the limit, on a machine that has other work
    while 0 not in processes.codes and time.monotonic() < end:
        time.sleep(0.1)
    processes.kill()
    assert processes.codes[0] == 2, processes.text()
    text = processes.text()
    assert "restart all with --resume auto" in text or "continue from it with --resume auto" in text
