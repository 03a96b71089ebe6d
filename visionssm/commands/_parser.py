"""What the parsers of all commands share: help from the module's docstring, errors in one line, general options."""

import argparse
import ast
import importlib
import logging
import re
import sys
from typing import Any, NoReturn

from ..errors import UserError, nearest
from ._help import HelpFormatter


def command_parser(module: str, doc: str | None, **kwargs: Any) -> "CommandParser":
    """Return the parser of a command, to which it adds its own options.

    Args:
        module: `__name__` of the command's module.
        doc: Its docstring: the first paragraph says what it does, the rest how it is called.
        kwargs: Further arguments of the parser.
    """
    name = command_name(module.rpartition(".")[2])
    summary, _, rest = (doc or "").strip().partition("\n\n")
    parser = CommandParser(
        prog=f"visionssm {name}",
        description=" ".join(summary.split()),
        epilog=as_commands(rest),
        formatter_class=HelpFormatter,
        **kwargs,
    )
    add_general_options(parser)
    return parser


def command_name(module: str) -> str:
    """Return the name of a module's command."""
    return module.replace("_", "-")


def as_commands(text: str) -> str:
    """Return a help text in which the doors in `tools/` are called as the console command."""
    return re.sub(r"(?:python )?tools/(\w+)\.py", lambda found: f"visionssm {command_name(found[1])}", text)


def add_general_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes."""
    group = parser.add_argument_group("general")
    group.add_argument(
        "--import",
        dest="device_modules",
        action=ImportModules,
        nargs="+",
        metavar="MODULE",
        help="modules to import first, from the working directory too: scan orders, models or devices of your own",
    )
    group.add_argument("--quiet", action=Quiet, help="print results and warnings alone, no progress")
    # the boundary around every command takes it out of the arguments
    group.add_argument("--debug", action="store_true", help="the traceback of an error instead of one line")


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and which option was perhaps meant.

    Attributes:
        former: Former names of options to those of today; they still work, and say so.
        former_positionals: Options of today whose values were once given without one, in their order; the same.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.former: dict[str, str] = {}
        self.former_positionals: list[str] = []

    def parse_known_args(self, args=None, namespace=None):
        words = []
        for word in sys.argv[1:] if args is None else args:
            option, equals, value = word.partition("=")
            if option in self.former:
                print(f"{option} is now called {self.former[option]}", file=sys.stderr)
                option = self.former[option]
            words.append(option + equals + value)
        namespace, left = super().parse_known_args(words, namespace)
        return namespace, self._take_former_positionals(namespace, left)

    def _take_former_positionals(self, namespace: argparse.Namespace, left: list[str]) -> list[str]:
        """Give words without an option to the options that take them now; returns what nobody takes."""
        for option in self.former_positionals:
            action = self._option_string_actions[option]
            words = [word for word in left if not word.startswith("-")]
            if not words or getattr(namespace, action.dest) is not action.default:
                continue
            several = action.nargs == "+"
            taken = words if several else words[:1]
            print(f"{' '.join(taken)}: is now given as {option} {taken[0]}", file=sys.stderr)
            setattr(namespace, action.dest, taken if several else taken[0])
            for word in taken:
                left.remove(word)
        return left

    def error(self, message: str) -> NoReturn:
        hint = ""
        if message.startswith("unrecognized arguments:"):
            word = next((word for word in message.split()[2:] if word.startswith("-")), "")
            hint = nearest(word.partition("=")[0], self._option_string_actions) if word else ""
        self.exit(2, f"{self.prog.partition(' ')[2] or self.prog}: {message}{hint} ({self.prog} --help)\n")


class FormerChoice(argparse.Action):
    """An option whose values are several options now; it sets those, and says so.

    Args:
        meanings: Values of old to the destinations that they set.
    """

    def __init__(self, option_strings, dest, *, meanings: dict[str, dict[str, Any]], **kwargs):
        told = {"choices": sorted(meanings), "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        super().__init__(option_strings, dest, **kwargs | told)
        self.meanings = meanings

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        meaning = self.meanings[values]
        told = {key: "" if value is True else f" {value}" for key, value in meaning.items() if value is not False}
        words = [f"--{key.replace('_', '-')}{value}" for key, value in told.items()]
        print(f"{option_string} {values} is now called {' '.join(words) or 'the default'}", file=sys.stderr)
        vars(namespace).update(meaning)


class ImportModules(argparse.Action):
    """Imports modules, from the working directory too, and keeps their names."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        known = [*(getattr(namespace, self.dest) or ()), *values]
        setattr(namespace, self.dest, known)
        import_modules(values, option_string or "--import")


def import_modules(names: list[str], option: str) -> None:
    """Import modules, from the working directory too.

    Raises:
        UserError: One cannot be imported.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"{option}: {name!r} cannot be imported: {error}") from error


class Quiet(argparse.Action):
    """Leaves warnings of this package alone; the boundary around every command sets the level back."""

    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        logging.getLogger("visionssm").setLevel(logging.WARNING)


class KeyValues(argparse.Action):
    """Collects `KEY=VALUE ...` in a mapping; values are Python literals, or text where they are none."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        pairs: dict[str, Any] = {}
        for text in values:
            key, equals, value = text.partition("=")
            if not equals or not key:
                parser.error(f"{option_string} takes KEY=VALUE, got {text!r}")
            try:
                pairs[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pairs[key] = value
        setattr(namespace, self.dest, pairs)
