"""Which registered models are ours."""

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
