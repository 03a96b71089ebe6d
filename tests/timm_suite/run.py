"""Run timm's own model tests on our models.

    python tests/timm_suite/run.py ['*vmamba*' ...]

The tests come from the source distribution of the installed timm version and are run in place against the installed
package; nothing of them is kept here. A plugin imports visionssm first and narrows timm's listing to the names asked
for. Left out are TorchScript (declined: the models raise an error that says so), tests that download weights, and the
few that cannot pass on a model for a reason that is printed.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import timm

import visionssm

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "work" / "timm_sdist"
MARKS = "base or cfg or forward or backward or features or fxforward or fxbackward"


def fetch_tests() -> Path:
    """Folder of timm's sources at the installed version, downloaded once."""
    name = f"timm-{timm.__version__}"
    if not (CACHE / name / "tests" / "test_models.py").is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--no-binary",
                "timm",
                f"timm=={timm.__version__}",
                "-d",
                str(CACHE),
            ],
            check=True,
        )
        with tarfile.open(CACHE / f"{name}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return CACHE / name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help="patterns of model names; every model of ours if none is given")
    parser.add_argument("--pytest-args", default="", help="further arguments of pytest, in one string")
    args = parser.parse_args()
    sources = fetch_tests()
    environment = {
        **os.environ,
        "VISIONSSM_SUITE_PATTERNS": "\n".join(args.patterns or visionssm.list_models()),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    # another working directory and import mode, so that the sources' own timm folder is not imported
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "plugin",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:timeout",  # how fast the machine is decides nothing
                "--import-mode=importlib",
                "-c",
                str(sources / "pyproject.toml"),
                "-m",
                MARKS,
                *args.pytest_args.split(),
                str(sources / "tests" / "test_models.py"),
            ],
            cwd=folder,
            env=environment,
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
