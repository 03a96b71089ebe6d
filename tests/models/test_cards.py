"""The generated tables of the model cards are what the registry says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_cards_are_up_to_date():
    command = [sys.executable, ROOT / "tools" / "model_cards.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
