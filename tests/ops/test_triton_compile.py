"""The Triton kernels compile for GPUs that are not here, without spilling registers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernel_resources.py"


def run(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment)


def test_no_spill_on_an_h100_at_one_shape(tmp_path):
    done = run("--shapes", "GroupMamba-T stage 1", "--targets", "sm_90", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "kernel_resources.md").read_text()
    assert "selective_scan_fwd" in table and "selective_scan_bwd" in table


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_shape_of_a_model(target):
    done = run("--targets", target)
    assert done.returncode == 0, done.stdout + done.stderr
