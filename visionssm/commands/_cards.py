"""The figures beside the model cards."""

import json
from typing import Any

from ..files import shipped


def published() -> dict[str, dict[str, Any]]:
    """Return the published figures of every variant by its name."""
    return {
        name: figures
        for path in sorted(shipped("model_cards").glob("*.json"))
        for name, figures in json.loads(path.read_text())["variants"].items()
    }
