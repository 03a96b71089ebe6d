"""The notebooks run from their first cell to their last, as a program, in a folder of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def program(path):
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "import matplotlib\nmatplotlib.use('Agg')\n" + "\n\n".join(code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_output(path):
    content = json.loads(path.read_text())
    assert content["nbformat"] == 4
    for cell in content["cells"]:
        assert cell["cell_type"] == "markdown" or (not cell["outputs"] and cell["execution_count"] is None)
    compile(program(path), path.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path):
    if path.stem == "detector":
        pytest.importorskip("mmdet", reason="mmdet is not installed")
    (tmp_path / "notebook.py").write_text(program(path))
    result = subprocess.run([sys.executable, "notebook.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    pictures = {p.name for p in (tmp_path / "work/notebook").glob("*.png")}
    assert pictures
