"""The one run on a GPU, gone through on a CPU that pretends to be one: no line of it is new on the day."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_every_step_runs_and_leaves_its_results(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "VISIONSSM_BACKEND")}
    command = [sys.executable, BENCHMARKS / "gpu_check.py", "--output", tmp_path, "--fake-gpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    logs = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in tmp_path.glob("*.log"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    assert "failed" not in (tmp_path / "summary.md").read_text()
    for name in ("gpu_scan", "gpu_scan_vim", "gpu_conv", "gpu_rules", "gpu_models"):
        table = (tmp_path / f"{name}.md").read_text()
        assert table.count("\n|") > 2, table


def test_a_step_that_fails_costs_no_other(tmp_path, monkeypatch):
    sys.path.insert(0, str(BENCHMARKS))
    import gpu_check

    steps = [
        gpu_check.Step("wrong", 20, ["-c", "raise SystemExit(3)"]),
        gpu_check.Step("slow", 2, ["-c", "import time; time.sleep(60)"]),
        gpu_check.Step("absent", 20, ["-c", ""], "no-such-tool --flag"),
        gpu_check.Step("right", 20, ["-c", "print('here')"]),
    ]
    monkeypatch.setattr(gpu_check, "steps", lambda *_: steps)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="summary.md"):
        gpu_check.main()
    summary = (tmp_path / "summary.md").read_text()
    assert "| failed: exit status 3 |" in summary and "| failed: out of time after 2 s |" in summary
    assert "| passed over: there is no no-such-tool |" in summary and "| passed |" in summary
    assert (tmp_path / "right.log").read_text() == "here\n"
