"""The README as it is written: its commands and programs in processes in which our own warnings are errors."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
# warnings that a file of this package raises end the process; `-W` would take whole names of modules alone
STRICT = """
import sys, warnings
for kind in (FutureWarning, DeprecationWarning, PendingDeprecationWarning, UserWarning):
    warnings.filterwarnings("error", category=kind, module=r"visionssm(\\.|$)")
"""
SMALL = ["--model", "test_vmamba", "--no-pretrained", "--img-size", "32", "--epochs", "1"]


def blocks(language):
    """The README's blocks of a language, each with the mark above it, if any."""
    found = re.findall(
        rf"(<!-- not run[^\n]*-->\n)?```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    return [(mark, code.replace("\\\n", " ")) for mark, code in found]


def chapter():
    """The commands of the chapter on one's own photos."""
    return [
        shlex.split(line)[1:]
        for _, code in blocks("bash")
        for line in code.splitlines()
        if line.startswith("visionssm ")
    ]


def strictly(code, folder, *arguments):
    """Run a program; returns what it printed, in which no warning may stand."""
    command = [sys.executable, "-c", STRICT + code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stdout + result.stderr
    return result.stdout


def test_our_warnings_end_a_program(tmp_path):
    """Those of our files, and no others."""
    (tmp_path / "visionssm_like.py").write_text("import warnings\nwarnings.warn('x')\n")
    package = tmp_path / "visionssm"
    package.mkdir()
    (package / "__init__.py").write_text("import warnings\nwarnings.warn('ours', FutureWarning)\n")
    run = [sys.executable, "-c", STRICT + "import visionssm_like\nprint('theirs passes')\nimport visionssm"]
    result = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert "theirs passes" in result.stdout and result.returncode == 1 and "FutureWarning: ours" in result.stderr


def test_every_block_is_run_or_says_why_not():
    run = [code for mark, code in blocks("python") if not mark]
    assert len(run) == 1 and "First look" in (ROOT / "README.md").read_text()
    assert {mark.strip() for mark, _ in blocks("python") if mark} == {
        "<!-- not run: needs weights -->",
        "<!-- not run: needs the run -->",  # the walk below runs it
    }
    assert [command[0] for command in chapter()] == ["train", "validate", "predict", "export"]


def test_the_first_look_raises_no_warning_of_ours(tmp_path):
    (code,) = [code for mark, code in blocks("python") if not mark]
    assert "torch.Size([1, 10])" in strictly(code, tmp_path)


@pytest.mark.slow
def test_the_chapter_on_photos_raises_and_prints_no_warning(tmp_path):
    rng = np.random.default_rng(0)
    for kind, colour in (("cat", 200), ("dog", 60)):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 50, (40, 52, 3)) + colour
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / kind / f"{number}.jpg")
    command = "from visionssm.commands._dispatch import main; sys.exit(main(sys.argv[1:]))"
    for words in chapter():  # devices, loader processes and all else as the README has them
        strictly(command, tmp_path, *words, *(SMALL if words[0] == "train" else []))
    for name in ("mistakes.png", "report.html", "photos.onnx"):
        assert (tmp_path / "work" / name).stat().st_size > 100
    for name in ("one.jpg", "two.jpg"):
        shutil.copy(tmp_path / "photos/cat/0.jpg", tmp_path / name)
    (use,) = [code for mark, code in blocks("python") if "needs the run" in mark]
    told = strictly("import visionssm\n" + use, tmp_path)
    assert [line.split()[0] in ("cat", "dog") for line in told.splitlines()] == [True, True]
