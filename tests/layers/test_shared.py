"""`visionssm.layers` holds what two families share, and nothing else."""

import ast
from pathlib import Path

import pytest

from visionssm import layers

PACKAGE = Path(layers.__file__).resolve().parents[1]
# a base class of models counts as the families that it is the base of
FLOORS = ("models", "segmentation", "restoration", "multitask", "anomaly", "compression")
FAMILIES = [path for floor in FLOORS for path in sorted((PACKAGE / floor).glob("*.py")) if path.stem != "__init__"]


def names_in(path):
    """Names that a file imports from inside the package, and those of its own that it builds on or calls."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ClassDef):
            found |= {base.id for base in node.bases if isinstance(base, ast.Name)}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
    return found


USERS = {path.stem: names_in(path) for path in FAMILIES}
INSIDE = {path.stem: names_in(path) for path in sorted((PACKAGE / "layers").glob("*.py")) if path.stem != "__init__"}


@pytest.mark.parametrize("name", sorted(layers.__all__))
def test_every_export_serves_two_families(name):
    users = {stem for stem, names in USERS.items() if name in names}
    within = {stem for stem, names in INSIDE.items() if name in names}
    based = any(stem.startswith("_") for stem in users)
    assert based or within or len(users) >= 2, f"{name} serves {users or 'nobody'}: move it there"
