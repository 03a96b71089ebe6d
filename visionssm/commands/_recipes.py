"""Recipe files: YAML with the option names of a parser, checked key by key before anything starts."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, nearest
from ..files import shipped
from ._parser import KeyValues


def apply_recipe(parser: argparse.ArgumentParser, path: str | Path, kind: str = "classification") -> None:
    """Make a recipe's values the defaults of a parser; `kind` is the folder of `configs` where names are looked up.

    Raises:
        UserError: The file cannot be read, or a key or a value does not fit the parser.
    """
    path = find_recipe(path, kind)
    parser.set_defaults(**check_recipe(parser, read_recipe(path), path))


def find_recipe(name: str | Path, kind: str = "classification") -> Path:
    """Return the file of a recipe: a path, or the name of one of ours, with its folder where that alone tells which.

    Raises:
        UserError: There is no such file.
    """
    path = Path(name)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    known = recipes(kind)
    found = [known[key] for key in known if key == str(name) or key.endswith(f"/{name}")]
    if len(found) != 1:
        names = [key.rpartition("/")[2] for key in known]
        raise UserError(f"there is no recipe {str(name)!r}{nearest(str(name), names)}")
    return found[0]


def recipes(kind: str = "classification") -> dict[str, Path]:
    """Return the recipes of a folder of `configs` by folder and name, `vmamba/vmamba_tiny_s1l8`."""
    folder = shipped("configs") / kind
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"recipe {path} holds a {type(content).__name__}, expected 'key: value' lines")
    return content


def check_recipe(parser: argparse.ArgumentParser, content: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Check every key and value against the parser's options and return the values in their final types."""
    actions = {a.dest: a for a in parser._actions if a.option_strings and a.dest not in ("help", "config")}
    values = {}
    for key, value in content.items():
        if key not in actions:
            hint = nearest(str(key).replace("-", "_"), actions)
            raise UserError(f"recipe {path}: there is no option {key!r}{hint}")
        if value is not None:
            values[key] = _convert(actions[key], value, f"recipe {path}: {key}")
    return values


def _convert(action: argparse.Action, value: Any, where: str) -> Any:
    if isinstance(action, KeyValues):
        if not isinstance(value, dict):
            raise UserError(f"{where} holds {value!r}, expected a mapping")
        return value
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"{where} holds {value!r}, expected true or false")
        return value
    if isinstance(action.nargs, int) or action.nargs in ("+", "*"):
        if not isinstance(value, list):
            raise UserError(f"{where} holds {value!r}, expected a list")
        if isinstance(action.nargs, int) and len(value) != action.nargs:
            raise UserError(f"{where} holds {len(value)} values, expected {action.nargs}")
        return [_convert_one(action, item, where) for item in value]
    return _convert_one(action, value, where)


def _convert_one(action: argparse.Action, value: Any, where: str) -> Any:
    kind = action.type or str
    try:
        # YAML 1.1 reads 1e-3 as text, so numbers are accepted as text too; true is never a number.
        taken = (str, int, float) if kind is float else (str, kind) if isinstance(kind, type) else (str, int)
        converted = kind(value) if isinstance(value, taken) else None
    except ValueError:
        converted = None
    if converted is None or isinstance(value, bool):
        raise UserError(f"{where} holds {value!r} ({type(value).__name__}), expected {kind.__name__}")
    if action.choices and converted not in action.choices:
        raise UserError(
            f"{where} holds {value!r}, expected one of {', '.join(map(repr, action.choices))}"
            + nearest(str(converted), map(str, action.choices))
        )
    return converted
