"""The SLURM launcher, run with stand-ins for SLURM's commands."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "slurm" / "train.sbatch"


def launch(tmp_path, exit_code, *arguments):
    """Run the script with `srun` and `scontrol` replaced by scripts that note their arguments."""
    for name, body in (
        ("srun", f'echo "$MASTER_ADDR $MASTER_PORT $@" > {tmp_path}/srun.txt; exit {exit_code}'),
        ("scontrol", f'echo "$@" >> {tmp_path}/scontrol.txt; echo node1; echo node2'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    return subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("exit_code, requeued", [(0, False), (143, True), (2, False)])
def test_command_and_requeue(tmp_path, exit_code, requeued):
    result = launch(tmp_path, exit_code, "r.yaml", "data", "out", "--epochs", "3")
    assert result.returncode == exit_code, result.stderr
    command = (tmp_path / "srun.txt").read_text()
    assert command.startswith("node1 20007 ")
    assert "tools/train.py -c r.yaml --data-dir data --output out --resume auto --epochs 3" in command
    assert ("requeue 7" in (tmp_path / "scontrol.txt").read_text()) == requeued


def test_usage(tmp_path):
    result = launch(tmp_path, 0, "r.yaml")
    assert result.returncode == 2
    assert "usage:" in result.stderr
