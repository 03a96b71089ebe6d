"""Compile the library into this folder: `python -m visionssm.ops.native.build`.

The installation does the same (setup.py). Needs gcc or clang; nothing of torch or Python is compiled against.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "libvisionssm_scan.so"
_COMPILED = ("library.c", "threads.c", "scan.c", "wavefront.c", "conv.c")
_SOURCES = sorted(path.name for path in FOLDER.glob("*.[ch]"))
# vectors are written out, so -O3 adds nothing but minutes; loops over the vectors of a row must be unrolled, though
_FLAGS = ("-std=c11", "-O2", "-fpeel-loops", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wno-psabi")
# contraction gives fused multiply-adds; the other two let loops with conditions become vector code
_MATH = ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
_X86 = {
    "baseline": ("-msse2",),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
}


class BuildError(RuntimeError):
    """The library could not be compiled; the message says why."""


def fingerprint() -> str:
    """Names the sources, so that a library made from others is noticed."""
    return hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in _SOURCES)).hexdigest()[:16]


def compiler() -> list[str]:
    """The command of the C compiler: the environment variable CC, else the first of cc, gcc and clang."""
    if platform.system() not in ("Linux", "Darwin"):
        raise BuildError(f"the native scan is built on Linux and macOS, not on {platform.system()}")
    if sys.maxsize < 2**32:
        raise BuildError("the native scan needs a 64-bit platform")
    candidates = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise BuildError(f"no C compiler was found (looked for {', '.join(candidates)})")


def build(target: Path = LIBRARY, flags: tuple[str, ...] = ()) -> Path:
    """Compile the library and put it at `target`, atomically.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    command = compiler()
    variants = _X86 if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": ()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        objects = []
        sources = (f'-DSOURCES="{fingerprint()}"',)
        jobs: list[tuple[str, str, tuple[str, ...]]] = [(source, Path(source).stem, sources) for source in _COMPILED]
        jobs += [("kernels.c", name, (f"-DVARIANT={name}", *extra)) for name, extra in variants.items()]
        running = []
        for source, name, extra in jobs:
            objects.append(f"{scratch}/{name}.o")
            arguments = [*command, *_FLAGS, *_MATH, *extra, *flags, "-c", str(FOLDER / source), "-o", objects[-1]]
            running.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        messages = [process.communicate()[0] for process in running]
        if any(process.returncode for process in running):
            raise BuildError(f"{shlex.join(command)} failed:\n" + "".join(messages)[-2000:])
        library = f"{scratch}/{target.name}"
        linked = subprocess.run(
            [*command, "-shared", "-pthread", *flags, *objects, "-o", library],
            capture_output=True,
            text=True,
            check=False,
        )
        if linked.returncode:
            raise BuildError(f"{shlex.join(command)} failed:\n{linked.stderr[-2000:]}")
        os.replace(library, target)
    return target


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(str(error))
