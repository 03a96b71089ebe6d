"""Is what a config of mmdet or mmseg needs installed, and whole? Said before it is imported."""

from importlib import import_module
from importlib.util import find_spec

from .errors import ConfigError

_PACKAGES = {"mmdet": ("mmdet", "mmcv"), "mmseg": ("mmseg", "mmcv")}


def check_installed(scope: str | None) -> None:
    """Check the packages of a scope.

    Args:
        scope: The `default_scope` of a config.

    Raises:
        ConfigError: one is missing or broken.
        BrokenOperatorsError: mmcv's operators are half installed.
    """
    packages = _PACKAGES.get(scope or "", ())
    for package in packages:
        if find_spec(package) is None:
            raise ConfigError(
                f"a config of {scope} needs {package}, which is not installed: pip install 'visionssm[openmmlab]', or "
                "here make openmmlab"
            )
    if packages:
        _check_opencv()
        import_module("mmcv._ext")  # says what is wrong with it


def _check_opencv() -> None:
    try:
        import_module("cv2")
    except ImportError as error:
        raise ConfigError(
            f"OpenCV does not load ({error}); where there is no display: "
            "pip install --no-deps --force-reinstall opencv-python-headless"
        ) from error
