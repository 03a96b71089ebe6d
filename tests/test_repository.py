"""What holds for the repository as a whole: one-way imports, safe loading, documents that agree with the code."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "visionssm"
# a part of the package may import itself and those before it
PARTS = (
    "errors files checkpoints _registry ops scans layers models segmentation restoration multitask anomaly compression "
    "pretraining analysis digits engine openmmlab commands"
).split()
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = MODULES + sorted((ROOT / "tools").glob("*.py"))
DOCUMENTS = [p for pattern in ("*.md", "docs/**/*.md", "model_cards/*.md") for p in sorted(ROOT.glob(pattern))]


def relative(path):
    return path.relative_to(ROOT).as_posix()


def imported(path):
    """Full names of the modules, or of what is in them, that a file imports."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part_of(name):
    """The part of the package that a full name belongs to, or None."""
    parts = name.split(".")
    return parts[1] if parts[0] == "visionssm" and len(parts) > 1 and parts[1] in PARTS else None


@pytest.mark.parametrize("part", PARTS)
def test_imports_go_one_way(part):
    allowed = set(PARTS[: PARTS.index(part) + 1])
    paths = sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]
    for path in paths:
        found = {part_of(name) for name in imported(path)} - {None}
        assert found <= allowed, f"{relative(path)} imports from {found - allowed}"


def test_rooms_of_the_engine_import_one_way():
    rooms = "data reports inference training".split()
    for number, room in enumerate(rooms):
        for path in (PACKAGE / "engine" / room).glob("*.py"):
            names = {name.split(".")[2] for name in imported(path) if name.startswith("visionssm.engine.")}
            assert not names & set(rooms[number + 1 :]), f"{relative(path)} imports from {names}"


def test_model_files_do_not_import_each_other():
    families = {p.stem for p in (PACKAGE / "models").glob("*.py") if not p.stem.startswith("_")}
    for family in families:
        names = {
            name.split(".")[2]
            for name in imported(PACKAGE / "models" / f"{family}.py")
            if name.startswith("visionssm.models.")
        }
        assert not names & families, f"models/{family}.py imports {names & families}"


def test_private_parts_of_timm_stay_in_one_place():
    for path in SOURCES:
        private = {n for n in imported(path) if n.startswith("timm.") and "._" in n}
        assert path.name == "_timm_compat.py" or not private, f"{relative(path)} imports {private}"


def test_checkpoints_are_never_unpickled():
    for path in SOURCES:
        source = path.read_text()
        assert "weights_only=False" not in source and '"weights_only": False' not in source, relative(path)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                flags = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert flags.get("weights_only") == "True", f"{relative(path)}:{node.lineno}: say weights_only=True"


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    wanted = {re.split(r"[\[>=<;! ]", d)[0] for d in wanted} - {"visionssm"}
    lines = [line for line in (ROOT / "constraints.txt").read_text().split("\n") if line and not line.startswith("#")]
    pinned = {re.split(r"[>=<]", line)[0] for line in lines if "==" in line}
    assert wanted <= pinned, f"constraints.txt has no exact version of {sorted(wanted - pinned)}"


def test_architecture_names_every_floor():
    text = (ROOT / "docs" / "architecture.md").read_text()
    floors = {p.name if p.suffix else f"{p.name}/" for p in PACKAGE.glob("[a-z]*") if p.suffix == ".py" or p.is_dir()}
    missing = {floor for floor in floors if f"`{floor}`" not in text} - {"version.py"}
    assert not missing, f"docs/architecture.md does not name {missing}"


def test_one_version_everywhere():
    import visionssm

    assert f"version: {visionssm.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == visionssm.__version__


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (path.parent / target.split("#")[0]).exists(), f"{relative(path)} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_named_files_exist(path):
    folders = "tools|configs|tests|visionssm|docs|benchmarks|model_cards"
    names = re.findall(rf"\b((?:{folders})/[\w./-]+\.\w+)", path.read_text())
    missing = sorted({name for name in names if not (ROOT / name).exists()})
    assert not missing, f"{relative(path)} names {missing}"


def test_readme_examples_run():
    blocks = re.findall(r"(<!-- not run[^\n]*-->\n)?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    runnable = [code for marked, code in blocks if not marked]
    assert runnable, "the README has a first look in Python"
    result = subprocess.run([sys.executable, "-c", "\n".join(runnable)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_make_target_is_explained():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[1].split()) - {"help"}
    explained = set(re.findall(r'@echo "make ([\w-]+)', makefile))
    assert targets == explained


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=relative)
def test_tools_explain_themselves(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert not stop.value.code and "usage:" in capsys.readouterr().out
