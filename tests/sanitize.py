"""The tests of the native scans with a library that watches addresses and undefined behaviour: `make sanitize`.

The library is compiled apart from the package's, so nothing needs to be put back.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from visionssm.ops.native.build import build, compiler

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder) / "libvisionssm_scan.so", FLAGS)
        # Python itself is not instrumented: the runtime must be there before it, and the C++ library for the runtime to
        # find what PyTorch throws
        runtime = [
            subprocess.run([*compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
            for name in ("libasan.so", "libstdc++.so.6")
        ]
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(name.strip() for name in runtime),
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",  # Python leaves objects to the end of the process
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "VISIONSSM_NATIVE_LIBRARY": str(library),
            "VISIONSSM_BACKEND": "native",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        return subprocess.run(
            [*command, *(f"tests/ops/test_{name}.py" for name in ("native_scan", "native_wavefront", "conv_backends"))],
            cwd=ROOT,
            env=environment,
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
