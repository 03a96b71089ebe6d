"""Which registered models are ours."""

import sys
from collections.abc import Sequence

import timm
from timm.models import model_entrypoint

_PACKAGE = __name__.split(".", 1)[0] + "."


def list_models(filter: str | Sequence[str] = "", pretrained: bool = False) -> list[str]:
    """Names of this package's models.

    Args:
        filter: Shell-style pattern, or several.
        pretrained: Only those with weights to download, with their tags.

    Returns:
        Sorted names, as `timm.list_models` gives them.
    """
    names = timm.list_models(filter, pretrained=pretrained)
    return [name for name in names if model_entrypoint(name).__module__.startswith(_PACKAGE)]


def kind_of(name: str) -> tuple[str, str]:
    """Model file and first word of a name; a pico variant, `test_*`, is of the kind that it makes small."""
    module = model_entrypoint(name).__module__.rpartition(".")[2]
    return module, name.removeprefix("test_").split("_")[0]


def list_kinds() -> dict[tuple[str, str], list[str]]:
    """Published variants by kind, in the order in which the model files list their configurations.

    Returns:
        Model file and first word of the names, to the names; pico variants are left out.
    """
    files = sorted({model_entrypoint(name).__module__ for name in list_models()})
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in [name for file in files for name in sys.modules[file].default_cfgs]:
        if not name.startswith("test_"):
            kinds.setdefault(kind_of(name), []).append(name)
    return kinds
