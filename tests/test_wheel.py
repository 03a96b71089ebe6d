"""The wheel: built, installed in an environment of its own, and used from there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("wheel")  # built once
ROOT = Path(__file__).resolve().parents[1]
USE = """
import sys, timm, torch, visionssm
model = timm.create_model("test_vmamba", num_classes=5).eval()
assert model(torch.randn(1, 3, 40, 56)).shape == (1, 5)
assert not {"mmengine", "mmcv", "mmdet", "mmseg", "matplotlib", "sklearn"} & set(sys.modules), "heavy imports"
print(visionssm.__file__)
"""


def run(*command, environment=None, **kwargs):
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # it may name this checkout
    outside.update(environment or {})
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=outside, **kwargs)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def build_wheel(folder, **environment):
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT)
    run(*build, environment=environment)
    return next(folder.glob("visionssm-*.whl"))


def install(wheel, folder):
    """The wheel in an environment of its own, whose dependencies come from this one; its Python and its site."""
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    return folder / "bin" / "python", site


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel_without_compiler(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("pure"), PATH="/nonexistent", CC="")


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "visionssm/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    shipped = "visionssm/shipped"
    assert {f"{shipped}/configs/classification/finetune.yaml", f"{shipped}/model_cards/vmamba.json"} <= set(names)
    assert "visionssm/engine/reports/templates/report.html" in names
    assert any(name.endswith("entry_points.txt") for name in names), "the console command"
    outside = {name.split("/")[0] for name in names if not name.startswith("visionssm")}
    assert not outside, f"the wheel is the library alone, but holds {outside}"


def test_install_and_use(wheel, tmp_path):
    python, site = install(wheel, tmp_path / "env")
    output = run(python, "-c", USE, cwd=tmp_path)
    assert output.strip() == str(site / "visionssm" / "__init__.py"), "nothing else may be printed on import"


BACKENDS = "from visionssm.ops import available_backends, backend_unavailable as why; "


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_library_comes_with_the_wheel(wheel, tmp_path):
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl"), wheel.name
    python, _ = install(wheel, tmp_path / "env")
    print_backends = BACKENDS + "print('native' in available_backends())"
    assert run(python, "-c", print_backends, cwd=tmp_path, environment={"PATH": "/nonexistent"}).strip() == "True"


def test_without_a_compiler(wheel_without_compiler, tmp_path):
    """The package is complete without the library, and says what is missing and how to get it."""
    assert wheel_without_compiler.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel_without_compiler).namelist()
    assert not any(name.endswith(".so") for name in names)
    python, site = install(wheel_without_compiler, tmp_path / "env")
    assert run(python, "-c", USE, cwd=tmp_path).strip() == str(site / "visionssm" / "__init__.py")
    message = run(python, "-c", BACKENDS + "print(why('native', 'cpu'))", cwd=tmp_path)
    assert "not compiled" in message and "native.build" in message
    if shutil.which("cc"):  # the remedy that the message names
        run(python, "-m", "visionssm.ops.native.build", cwd=tmp_path)
        assert run(python, "-c", BACKENDS + "print(why('native', 'cpu'))", cwd=tmp_path).strip() == "None"


DETECTOR = """
from visionssm.commands.openmmlab_train import main
assert main(["--config", "detector.py", "--data-dir", "scenes", "--output", "work"]) == 0
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
