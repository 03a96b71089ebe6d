"""What tests need to know of the families, read from the registry and from the models themselves."""

from functools import cache

import pytest
import timm

import visionssm
from visionssm.models import kind_of, list_kinds

PICO = visionssm.list_models("test_*")
FAMILIES = sorted({family for family, _ in list_kinds()})  # names of model files, recipe folders and cards
SMALL = [names[0] for names in list_kinds().values()]  # a published variant of each kind, tiny by custom


def published(family: str) -> list[str]:
    """The published variants of a family."""
    return [name for (file, _), names in list_kinds().items() if file == family for name in names]


def small_of(pico: str) -> str:
    """The published variant whose recipe a pico variant is trained with."""
    return list_kinds()[kind_of(pico)][0]


@cache
def _model(name: str):
    return timm.create_model(name, device="meta")


def is_plain(name: str) -> bool:
    """Whether all feature maps have one stride."""
    return len({level["reduction"] for level in _model(name).feature_info}) == 1


def at_size(name: str, size: int) -> dict:
    """Arguments that build a model for a size, if it is built for one: position embeddings are not resampled then."""
    return {"img_size": size} if hasattr(_model(name), "set_input_size") else {}


FEW = ("test_vmamba", next(filter(is_plain, PICO)))  # the demo's model, and a plain one


def mostly_slow(names) -> list:
    """Parameters of a costly test of what all families share: those outside `FEW` are slow."""
    return [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in names]
