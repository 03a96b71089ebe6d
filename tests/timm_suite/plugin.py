"""pytest plugin: makes timm's test_models.py see our models, and only those asked for."""

import fnmatch
import os

import pytest
import timm
import timm.models
from timm.models import _registry

PATTERNS = os.environ["VISIONSSM_SUITE_PATTERNS"].split("\n")
ONLINE = ("test_model_inference", "test_model_load_pretrained", "test_model_features_pretrained")

tested: set[str] = set()


def _match(name: str) -> bool:
    return any(fnmatch.fnmatch(name.split(".", 1)[0], pattern) for pattern in PATTERNS)


def _is_plain(name: str) -> bool:
    """Whether the features are tokens."""
    return timm.create_model(name, device="meta").output_fmt == "NLC"


def _why_not(test: str, name: str) -> str | None:
    """Why one of timm's tests cannot pass on a model, or None."""
    model = timm.create_model(name.split(".", 1)[0], device="meta")
    if test in ("test_model_backward", "test_model_backward_fx"):
        if not all(p.requires_grad for p in model.parameters()):
            return "it asks for a gradient of every parameter, and the published model counts some that are not trained"
    if test == "test_model_default_cfgs_non_std" and model.num_features != model.head_hidden_size:
        return "it asks for a classifier that sees the channels of one token, and this one sees several tokens"
    return None


def pytest_configure(config):
    config.addinivalue_line("markers", "timeout: of timm's tests; nobody obeys it here")
    before = set(_registry._model_entrypoints)
    import visionssm  # noqa: F401

    modules = sorted({_registry._model_to_module[name] for name in set(_registry._model_entrypoints) - before})
    original = _registry.list_models
    config.suite_left_out = []
    config.suite_names = [name for name in original() if _match(name)]
    if not config.suite_names:
        raise pytest.UsageError(f"no registered model matches {PATTERNS}")

    # models whose features are tokens, not a map, are tested like timm's vit_*
    token_models = [name for name in config.suite_names if _is_plain(name)]

    def list_models(filter="", module="", pretrained=False, exclude_filters="", **kwargs):
        # timm's file asks by its own lists of modules and names: extend them
        if isinstance(module, (list, tuple)) and "vision_transformer" in module:
            module = [*module, *modules]
        if isinstance(filter, (list, tuple)) and "vit_*" in filter:
            filter = [*filter, *token_models]
        excluded = [exclude_filters] if isinstance(exclude_filters, str) else list(exclude_filters)
        excluded = [e for e in excluded if e]
        if "vit_*" in excluded:
            excluded += token_models
        names = original(filter, module, pretrained, excluded or "", **kwargs)
        return [name for name in names if _match(name)]

    timm.list_models = timm.models.list_models = list_models


def pytest_collection_modifyitems(config, items):
    names = {item: item.callspec.params.get("model_name") for item in items if hasattr(item, "callspec")}
    items[:] = []
    for item, name in names.items():
        # an empty list of names leaves a placeholder that is no string
        if not isinstance(name, str) or not _match(name) or item.originalname in ONLINE:
            continue
        reason = _why_not(item.originalname, name)
        if reason is None:
            items.append(item)
        else:
            config.suite_left_out.append(f"{item.name}: {reason}")


def pytest_terminal_summary(terminalreporter, config):
    for line in config.suite_left_out:
        terminalreporter.write_line(f"left out {line}")


def pytest_runtest_logreport(report):
    # the last parameter is the name, perhaps with a tag; reports reach the controller of parallel runs too
    tested.add(report.nodeid.rsplit("[", 1)[-1].rstrip("]").rsplit("-", 1)[-1].split(".", 1)[0])


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workerinput"):
        return
    missing = sorted(set(session.config.suite_names) - tested)
    without_cfg = sorted(set(session.config.suite_names) - set(_registry.list_models(name_matches_cfg=True)))
    if exitstatus == 0 and (missing or without_cfg):
        print(f"\nno test for: {missing}; no default cfg of its own: {without_cfg}")
        session.exitstatus = 3
