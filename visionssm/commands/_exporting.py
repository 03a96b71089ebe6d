"""What the exports of one model and of all share: --img-size, and an exporter's failure as one sentence."""

from collections.abc import Callable
from typing import Any

from ..errors import UserError


def attempt(work: Callable[[], Any], what: str) -> Any:
    """What an export of `what` returns.

    Raises:
        UserError: it failed.
    """
    try:
        return work()
    except UserError:
        raise
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error
    except Exception as error:  # exporters raise errors of many kinds, and chain the reason
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise UserError(f"{what} cannot be exported: {lines[0][:300]}") from error


def sized(size: list[int], dims: int) -> list[int]:
    """What --img-size says for a model of so many dimensions."""
    if len(size) not in (1, dims):
        raise UserError(f"--img-size takes 1 or {dims} numbers for this model, found {len(size)}")
    return size * dims if len(size) == 1 else list(size)
