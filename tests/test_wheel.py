"""The wheel: built, installed in an environment of its own, and used from there."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USE = """
import sys, timm, torch, visionssm
model = timm.create_model("test_vmamba", num_classes=5).eval()
assert model(torch.randn(1, 3, 40, 56)).shape == (1, 5)
assert not {"mmengine", "mmcv", "mmdet", "mmseg", "matplotlib", "sklearn"} & set(sys.modules), "heavy imports"
print(visionssm.__file__)
"""


def run(*command, **kwargs):
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # it may name this checkout
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=outside, **kwargs)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT)
    return next(folder.glob("visionssm-*.whl"))


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "visionssm/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    outside = {name.split("/")[0] for name in names if not name.startswith("visionssm")}
    assert not outside, f"the wheel is the library alone, but holds {outside}"


def test_install_and_use(wheel, tmp_path):
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    site = next(environment.glob("lib/python*/site-packages"))
    # the dependencies come from this environment; visionssm itself must come from the wheel
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    output = run(environment / "bin" / "python", "-c", USE, cwd=tmp_path)
    assert output.strip() == str(site / "visionssm" / "__init__.py"), "nothing else may be printed on import"


DETECTOR = """
from visionssm.openmmlab import launching
assert launching.train(["detector.py", "--data-root", "scenes", "--work-dir", "work"]) == 0
"""


@pytest.mark.slow
def test_the_openmmlab_extra_alone_trains_a_detector(wheel, tmp_path):
    """In an empty environment; downloads PyTorch and all else."""
    from mmengine.config import Config

    from visionssm.digits.scenes import write_scenes

    write_scenes(tmp_path / "scenes", train=4, validation=2)
    cfg = Config.fromfile(ROOT / "configs/detection/digits/mask_rcnn_test_vmamba_digits.py")
    cfg.model.backbone.pretrained = False
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = 2
    cfg.train_dataloader.batch_size = 2
    cfg.vis_backends = cfg.visualizer.vis_backends = []
    cfg.default_hooks.visualization.draw = False
    cfg.dump(tmp_path / "detector.py")
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[openmmlab]")
    run(python, "-c", DETECTOR, cwd=tmp_path)
    assert (tmp_path / "work/iter_2.pth").is_file()
