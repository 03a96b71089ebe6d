"""Is what a config of mmdet or mmseg needs installed? Said before it is imported."""

from importlib.util import find_spec

_PACKAGES = {"mmdet": ("mmdet", "mmcv", "mmcv._ext"), "mmseg": ("mmseg", "mmcv")}


def check_installed(scope: str | None) -> None:
    """Check the packages of a scope.

    Args:
        scope: The `default_scope` of a config.

    Raises:
        ValueError: one is missing.
    """
    for package in _PACKAGES.get(scope or "", ()):
        if find_spec(package) is None:
            what = "the compiled operators of mmcv" if package == "mmcv._ext" else package
            raise ValueError(
                f"a config of {scope} needs {what}: not installed; docs/openmmlab.md says how "
                "(here: make openmmlab-compiled for mmdet, make openmmlab for mmseg)"
            )
