"""Finds and loads the compiled library, or says why there is none."""

import ctypes
import os
from pathlib import Path
from typing import Any

from .build import LIBRARY, fingerprint

_REMEDY = (
    "install visionssm again where there is a C compiler (gcc or clang), or run `python -m visionssm.ops.native.build`"
)


def _find() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why it cannot be used and what to do about it."""
    elsewhere = os.environ.get("VISIONSSM_NATIVE_LIBRARY")
    path = Path(elsewhere) if elsewhere else LIBRARY
    if not path.exists():
        if elsewhere:
            return None, f"VISIONSSM_NATIVE_LIBRARY names {path}, which does not exist"
        return None, f"its library was not compiled when visionssm was installed; {_REMEDY}"
    try:
        library = ctypes.CDLL(str(path))
        library.visionssm_sources.restype = ctypes.c_char_p
        library.visionssm_instruction_set.restype = ctypes.c_char_p
        library.visionssm_force_instruction_set.argtypes = [ctypes.c_char_p]
        # blocks of memory with eight bytes a member, see scan.h, wavefront.h and conv.h
        for name in ("scan", "wavefront", "conv"):
            getattr(library, f"visionssm_{name}").argtypes = [ctypes.c_void_p]
            getattr(library, f"visionssm_{name}_backward").argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    except (OSError, AttributeError) as error:
        return None, f"its library cannot be loaded ({error}); {_REMEDY}"
    if library.visionssm_sources().decode() != fingerprint():
        return None, f"its library {path} was compiled from other sources than these; {_REMEDY}"
    return library, None


# at import: a compiler that traces a model would stumble over the search
LIBRARY_LOADED: Any
LIBRARY_LOADED, MISSING = _find()


def instruction_set() -> str:
    """The instruction set whose version of the kernels runs: "avx512", "avx2" or "baseline"."""
    return LIBRARY_LOADED.visionssm_instruction_set().decode()


def force_instruction_set(name: str | None) -> None:
    """Run the version for another instruction set from now on, None for the best; for tests and measurements.

    Raises:
        ValueError: this machine cannot run it.
    """
    if LIBRARY_LOADED.visionssm_force_instruction_set(None if name is None else name.encode()) != 0:
        raise ValueError(f"this machine has no {name!r} version of the native scan")
