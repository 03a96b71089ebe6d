"""Errors that the tools print as one sentence, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can repair: the message says what was found and what was expected."""


class CheckpointError(UserError, RuntimeError):
    """A file is not the checkpoint that a model needs."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return `"; did you mean 'a', 'b'?"` for the closest candidates, or an empty string."""
    matches = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(repr(m) for m in matches)}?" if matches else ""
