"""Compiles the native scan where there is a C compiler, and puts recipes and model cards beside the modules.

Everything else is in pyproject.toml.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path("visionssm/ops/native")
SHIPPED = {"configs": ("*.yaml", "*.py"), "model_cards": ("*.json",)}  # visionssm.files.shipped finds them

_spec = importlib.util.spec_from_file_location("native_build", Path(__file__).parent / NATIVE / "build.py")
native = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(native)


class BuildWithNative(build_py):
    """Puts the library beside the modules. Without it the package works, slower on CPUs: a failure is only reported."""

    @property
    def library(self) -> Path:
        return native.LIBRARY if self.editable_mode else Path(self.build_lib, NATIVE, native.LIBRARY.name)

    @property
    def shipped(self) -> dict[Path, Path]:
        """Where the wheel has a file, to where the repository has it; an editable installation reads the latter."""
        if self.editable_mode:
            return {}
        target = Path(self.build_lib, "visionssm", "shipped")
        found = [p for folder, kinds in SHIPPED.items() for kind in kinds for p in sorted(Path(folder).rglob(kind))]
        return {target / path: path for path in found}

    def run(self):
        super().run()
        for target, source in self.shipped.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        try:
            native.build(self.library)
        except native.BuildError as error:
            self.library.unlink(missing_ok=True)
            print(f"warning: the native scan was not compiled, so CPUs take a slower path: {error}", file=sys.stderr)

    def get_outputs(self, include_bytecode=True):
        library = [str(self.library)] if self.library.exists() else []
        return [*super().get_outputs(include_bytecode), *map(str, self.shipped), *library]


class PlatformWheel(bdist_wheel):
    """Tagged for the platform if it holds the library, and for any Python 3: the library knows nothing of Python."""

    def run(self):
        self.run_command("build")
        self.root_is_pure = not self.get_finalized_command("build_py").library.exists()
        self.distribution.has_ext_modules = lambda: not self.root_is_pure  # decides on the folder inside the wheel
        super().run()

    def get_tag(self):
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


setup(cmdclass={"build_py": BuildWithNative, "bdist_wheel": PlatformWheel})
