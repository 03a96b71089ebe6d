"""The parsers of all commands, and the table of the options that several take."""

import argparse
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from ._dispatch import commands


class _Caught(Exception):
    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command by its name, those of its own commands as `visualize scans`.

    A command is called without arguments, and ends where it would begin to parse them.
    """
    found: dict[str, argparse.ArgumentParser] = {}
    for name in commands():
        main = importlib.import_module(f".{name.replace('-', '_')}", __package__).main
        with _catching():
            try:
                main([])
            except _Caught as caught:
                found |= _with_inner(name, caught.parser)
    return found


@contextmanager
def _catching() -> Iterator[None]:
    before = argparse.ArgumentParser.parse_known_args

    def catch(self, args=None, namespace=None):
        raise _Caught(self)

    argparse.ArgumentParser.parse_known_args = catch  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_known_args = before  # type: ignore[method-assign]


def _with_inner(name: str, parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        return {name: parser}
    return {f"{name} {own}": sub for action in inner for own, sub in action.choices.items()}


def shared_options() -> dict[str, dict[str, argparse.Action]]:
    """Return the options that several commands take, with what each command says of it."""
    found: dict[str, dict[str, argparse.Action]] = defaultdict(dict)
    for name, parser in parsers().items():
        for action in parser._actions:
            option = next((o for o in action.option_strings if o.startswith("--")), None)
            if option and option != "--help" and action.help != argparse.SUPPRESS:
                found[option][name] = action
    return {option: by for option, by in sorted(found.items()) if len(by) > 1}


def table() -> str:
    """Return the table of shared options in Markdown: meaning, default, and who takes it."""
    lines = ["| option | means | default | taken by |", "|---|---|---|---|"]
    for option, by in shared_options().items():
        meaning = re.sub(r"\s+", " ", next(iter(by.values())).help or "").replace("|", "\\|")
        defaults: dict[str, list[str]] = defaultdict(list)
        for name, action in by.items():
            plain = action.default in (None, "", False, argparse.SUPPRESS) or action.default == {}
            defaults["" if plain else f"`{action.default}`"].append(name)
        told = "; ".join(f"{value or 'none'}: {', '.join(names)}" for value, names in defaults.items())
        told = next(iter(defaults)) if len(defaults) == 1 else told
        lines.append(f"| `{option}` | {meaning} | {told} | {', '.join(by)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the table into docs/options.md."""
    from pathlib import Path

    from ..files import write_text

    path = Path(__file__).resolve().parents[2] / "docs" / "options.md"
    write_text(path, with_table(path.read_text()))
    print(path)


def with_table(text: str) -> str:
    """Return a document with the table of today between its marks."""
    head, _, rest = text.partition("<!-- options -->")
    return f"{head}<!-- options -->\n{table()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"


if __name__ == "__main__":
    main()
