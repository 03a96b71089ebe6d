"""How the published files of a family name and shape what a model of ours holds: data, read by one converter."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError


@dataclass(frozen=True)
class Refusal:
    """Files that look like the family's and are not supported.

    Attributes:
        having: Pattern that one of the file's names matches.
        why: Sentence for the user.
        without: Pattern that none of its names matches.
    """

    having: str
    why: str
    without: str = ""


@dataclass(frozen=True)
class Layout:
    """The published layout of one model class. Patterns are regular expressions, searched in names.

    Attributes:
        own: Pattern of a name that only state dicts of our class have; those are not converted.
        former: Pairs as in `names`, for names that earlier versions of our class wrote.
        tell_tale: Patterns that only the family's published files match all; of several families the one with the most
            patterns is named.
        names: Pairs of pattern and replacement (as for `re.sub`), applied to each name in this order.
        stack: Our name of a parameter with a route axis -> the routes' names in the files: a tuple, or one text with
            `{}` for the route's number from 0 on. All are endings; what stands before them is kept.
        drop: Pattern of names to leave out.
        refuse: Files to refuse with a reason of their own.
    """

    own: str
    former: tuple[tuple[str, str], ...] = ()
    tell_tale: tuple[str, ...] = ()
    names: tuple[tuple[str, str | Callable[[re.Match], str]], ...] = ()
    stack: Mapping[str, str | tuple[str, ...]] | None = None
    drop: str = ""
    refuse: tuple[Refusal, ...] = ()

    def rename(self, name: str) -> str:
        """A published name to ours."""
        return _rename(name, self.names)

    def rename_former(self, name: str) -> str:
        """A name that an earlier version of our class wrote to the present one."""
        return _rename(name, self.former)

    def is_own(self, state_dict: Mapping[str, Any]) -> bool:
        """Whether the names are those of our class."""
        return any(re.search(self.own, name) for name in state_dict)

    def convert(self, source: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Convert published weights, and those that earlier versions of ours wrote, to our names and shapes.

        Args:
            source: Weights by name, without nesting.
            shapes: Shapes by our names. A weight of as many values whose axes differ in ones, or in a route axis that
                is merged with the one behind it, is reshaped.

        Raises:
            CheckpointError: the layout refuses such files.
        """
        for refusal in self.refuse:
            if _any(refusal.having, source) and not (refusal.without and _any(refusal.without, source)):
                raise CheckpointError(refusal.why)
        if self.is_own(source):
            present = {self.rename_former(name): value for name, value in source.items()}
            return {name: _fit_shape(value, shapes.get(name)) for name, value in present.items()}
        kept = {name: value for name, value in source.items() if not (self.drop and re.search(self.drop, name))}
        renamed = {self.rename(name): value for name, value in self._stack(kept).items()}
        return {name: _fit_shape(value, shapes.get(name)) for name, value in renamed.items()}

    def _stack(self, source: dict[str, Any]) -> dict[str, Any]:
        """Stack the parameters of routes; those that are incomplete or of several shapes keep their names."""
        out = dict(source)
        for target, routes in (self.stack or {}).items():
            first = routes.format(0) if isinstance(routes, str) else routes[0]
            for prefix in [name.removesuffix(first) for name in source if name.endswith(first)]:
                if prefix and not prefix.endswith("."):
                    continue  # the ending of another name
                names = _numbered(prefix + routes, source) if isinstance(routes, str) else [prefix + r for r in routes]
                values = [source[name] for name in names if name in source]
                if len(values) == len(names) and len({value.shape for value in values}) == 1:
                    out[prefix + target] = torch.stack(values)
                    for name in names:
                        del out[name]
        return out


def shifted(template: str, by: int = 1) -> Callable[[re.Match], str]:
    """A replacement that writes the first group, a number, moved by `by` in place of `{}`, then expands as `re.sub`."""
    return lambda match: match.expand(template.format(int(match[1]) + by))


def _rename(name: str, patterns: Sequence[tuple[str, Any]]) -> str:
    for pattern, new in patterns:
        name = re.sub(pattern, new, name)
    return name


def _any(pattern: str, names: Mapping[str, Any]) -> bool:
    return any(re.search(pattern, name) for name in names)


def _numbered(template: str, names: Mapping[str, Any]) -> list[str]:
    out: list[str] = []
    while (name := template.format(len(out))) in names:
        out.append(name)
    return out


def _fit_shape(value: Any, shape: Sequence[int] | None) -> Any:
    if not isinstance(value, Tensor) or shape is None or tuple(value.shape) == tuple(shape):
        return value
    found, wanted = ([size for size in s if size != 1] for s in (value.shape, shape))
    if found == wanted or _merged(found) == wanted or found == _merged(wanted):
        return value.reshape(tuple(shape))
    return value


def _merged(shape: list[int]) -> list[int] | None:
    return [shape[0] * shape[1], *shape[2:]] if len(shape) > 1 else None
