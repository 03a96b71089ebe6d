"""The console command: finds the commands by their modules, and lists them without importing any."""

import ast
import importlib
import sys
import warnings
from pathlib import Path

from ..errors import nearest
from ..version import __version__
from ._boundary import bounded, call
from ._parser import command_name

HELP = {"-h", "--help"}


def commands() -> dict[str, str]:
    """Return the commands and what each does, the first sentence of its module's docstring; no module is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[command_name(path.stem)] = doc.partition("\n\n")[0].replace("\n", " ")
    return found


def overview() -> str:
    """Return the help of the console command."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {summary}" for name, summary in known.items()]
    return "\n".join(
        [
            "usage: visionssm COMMAND [options]",
            "",
            "Vision state-space models: train, evaluate, use, measure and explain them.",
            "",
            *lines,
            "",
            "visionssm COMMAND --help shows its options and two examples; --version says which visionssm this is.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in HELP:
        print(overview())
        return 0
    name, *rest = arguments
    if name == "--version":
        print(f"visionssm {__version__}")
        return 0
    name, known = command_name(name), commands()
    if name not in known:
        print(f"visionssm: there is no command {name!r}{nearest(name, known)} (visionssm --help)", file=sys.stderr)
        return 2
    return run(name.replace("-", "_"), rest)


def run(module: str, arguments: list[str]) -> int:
    """Run the command of a module; an error of its import ends as one of its own does."""

    def work() -> int:
        if not HELP & set(arguments):
            from .. import models  # noqa: F401  registers them; a help does without

        main = importlib.import_module(f".{module}", __package__).main
        return (main if hasattr(main, "__wrapped__") else bounded(main, module))(arguments)

    debug = "--debug" in arguments
    with warnings.catch_warnings():
        if not debug:  # what other packages tell each other about their futures
            warnings.filterwarnings("ignore", category=FutureWarning, module="(?!visionssm)")
        return call(module, work, debug)
