"""The table of what came out: a row for each library, a column for each outcome."""

from collections import defaultdict
from importlib import metadata

import pytest

PACKAGES = {
    "accelerate": "accelerate",
    "captum": "captum",
    "fvcore": "fvcore",
    "grad_cam": "grad-cam",
    "lightning": "lightning",
    "monai_slides_a_window": "monai",
    "monai_trains_a_plain_module": "monai",
    "onnxruntime": "onnxruntime",
    "peft": "peft",
    "segmentation_models": "segmentation-models-pytorch",
    "timm_backbone": "transformers",
    "timm_wrapper": "transformers",
    "trainer": "transformers",
    "torch_quantization": "torch",
    "torchao": "torchao",
    "torchvision_extraction": "torchvision",
}
_outcomes: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name, _, model = report.nodeid.rpartition("::")[2].partition("[")
    if "ecosystem" in report.nodeid and (report.when == "call" or report.outcome != "passed"):
        _outcomes[name.removeprefix("test_")][report.outcome].append(model.rstrip("]"))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _outcomes:
        return
    lines = ["| test | library | models passed | failed | not applicable |", "|---|---|---|---|---|"]
    for name, found in sorted(_outcomes.items()):
        package = PACKAGES[name]
        outcomes = (", ".join(found[outcome]) or "none" for outcome in ("failed", "skipped"))
        lines.append(f"| {name} | {package} {_version(package)} | {len(found['passed'])} | {' | '.join(outcomes)} |")
    terminalreporter.write_line("")
    for line in lines:
        terminalreporter.write_line(line)
