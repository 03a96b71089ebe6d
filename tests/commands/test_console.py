"""The console command: what it finds, how fast its help is, and where errors end."""

import logging
import resource
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from visionssm.commands import _dispatch
from visionssm.commands._boundary import bounded
from visionssm.commands._parser import command_parser
from visionssm.commands._recipes import find_recipe, recipes
from visionssm.commands.train import main as train
from visionssm.errors import UserError

ROOT = Path(__file__).parents[2]
LIGHT = "benchmark predict train validate".split()


def test_every_command_is_listed_with_what_it_does(capsys):
    assert _dispatch.main(["--help"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert {line.split()[0] for line in lines} == set(_dispatch.commands())
    for name, summary in _dispatch.commands().items():
        assert len(summary.split()) > 2 and "tools/" not in summary, f"{name}: {summary!r}"


def test_every_command_has_a_door_in_tools():
    doors = {name.replace("-", "_") for name in _dispatch.commands()}
    assert doors <= {path.stem for path in (ROOT / "tools").glob("*.py")}


@pytest.mark.parametrize("name", ["", *LIGHT])
def test_help_does_not_wait_for_torch(name):
    command = [sys.executable, "-X", "importtime", "-m", "visionssm", *filter(None, [name]), "--help"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1  # seconds of computing
    assert result.returncode == 0, result.stderr
    assert "usage: visionssm" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "argparse" in imported and not {"torch", "timm", "numpy", "matplotlib"} & imported


def test_the_module_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "visionssm", "trian"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 2 and "did you mean 'train'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_registration_does_not_depend_on_the_way_in():
    """A program of that name, which is not a script, registers when the registry is asked for."""
    script = "import sys; sys.argv = ['/bin/visionssm', 'info']; import visionssm; assert 'timm' not in sys.modules\n"
    script += "assert 'test_vmamba' in visionssm.list_models(); import timm; assert timm.is_model('test_vmamba')"
    subprocess.run([sys.executable, "-c", script], check=True)


def raising(error):
    @bounded
    def main(argv=None):
        raise error

    return main


@pytest.mark.parametrize(
    "error, status, line",
    [
        (UserError("take a card"), 2, "test_console: take a card"),
        (KeyboardInterrupt(), 130, "test_console: interrupted"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), 2, "test_console: a/b: No such file or directory"),
        (ModuleNotFoundError("no", name="onnx.helper"), 2, "pip install 'visionssm[export]'"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "smaller --batch-size"),
    ],
)
def test_errors_end_in_one_line(error, status, line, capsys):
    assert raising(error)([]) == status
    told = capsys.readouterr().err
    assert line in told and len(told.splitlines()) == 1
    with pytest.raises(type(error)):
        raising(error)(["--debug"])


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())([])


def test_recipes_are_found_by_name(capsys):
    assert (
        find_recipe("vmamba_tiny_s1l8")
        == find_recipe("vmamba/vmamba_tiny_s1l8")
        == recipes()["vmamba/vmamba_tiny_s1l8"]
    )
    assert train(["-c", "vmamba_tiny_s1l9"]) == 2
    assert "did you mean 'vmamba_tiny_s1l8'" in capsys.readouterr().err


def test_unknown_options_name_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        train(["--data-dri", "x"])
    assert stop.value.code == 2 and "did you mean '--data-dir'" in capsys.readouterr().err


def test_modules_of_the_working_directory_are_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_order_of_mine.py").write_text("print('registered')\n")
    assert train(["--import", "own_order_of_mine", "--data-dir", "nowhere", "--output", "run", "--device", "cpu"]) == 2
    told = capsys.readouterr()
    assert "registered" in told.out and "nowhere" in told.err
    assert train(["--device-modules", "no_such_module_of_mine"]) == 2
    told = capsys.readouterr().err
    assert "--device-modules is now called --import" in told and "cannot be imported" in told


def test_missing_network_names_address_and_remedy(monkeypatch):
    import timm

    from visionssm.engine.inference.models import create_model

    def unreachable(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(UserError, match=r"from https://\S+vssm1_tiny.*Name or service.*checkpoints.*--checkpoint FILE"):
        create_model("vmamba_tiny_s1l8", pretrained=True)


def test_quiet_leaves_results_alone(tmp_path, capsys):
    from visionssm.engine.reports.progress import Progress, setup_logging

    parser = command_parser("a.b.some", "Do something.\n\npython tools/some.py")

    @bounded
    def main(argv=None):
        parser.parse_args(argv)
        setup_logging()
        progress = Progress("pass", 6)
        for _ in range(6):
            progress.advance(1)
        print("result")
        return 0

    handlers = list(logging.getLogger().handlers)
    try:
        assert main([]) == 0
        loud = capsys.readouterr().out
        assert "step 5/6" in loud and "ETA" in loud, "an early line says how long it takes"
        assert main(["--quiet"]) == 0
        assert capsys.readouterr().out == "result\n"
    finally:
        logging.getLogger().handlers[:] = handlers
    assert logging.getLogger("visionssm").level == logging.NOTSET
