"""The scan for counters that know operators by name: fvcore's and mmengine's.

They trace a model and look up each operator in a table of handles; one without a handle counts nothing, which for these
models leaves out up to half. PyTorch's own `torch.utils.flop_counter` needs no such help, nor do tools built on it.
"""

from importlib import import_module
from importlib.util import find_spec

from ..ops.selective_scan.flops import count_shapes

# module, and its table of the handles that every counter begins with
_TABLES = {
    "fvcore.nn.flop_count": "_DEFAULT_SUPPORTED_OPS",
    "mmengine.analysis.complexity_analysis": "_DEFAULT_SUPPORTED_FLOP_OPS",
}


def scan_handle(inputs: list, outputs: list) -> int:
    """Multiply-adds of one scan, half of its FLOPs as `visionssm.analysis.flops` counts them.

    Args:
        inputs: The traced operator's arguments, `torch._C.Value`.
        outputs: Its results.
    """
    return count_shapes(*(_shape(value) for value in inputs)) // 2


def _shape(value):
    return value.type().sizes() if value.type().kind() == "TensorType" else value.toIValue()


# for `fvcore.nn.FlopCountAnalysis(model, images).set_op_handle(**OP_HANDLES)` and mmengine's FlopAnalyzer likewise
OP_HANDLES = {"visionssm::selective_scan": scan_handle}


def register_counters() -> list[str]:
    """Have every counter of fvcore and mmengine that is made from now on count the scan.

    Of these libraries those that are installed; also `mmengine.analysis.get_model_complexity_info`, and the get_flops
    tools of mmdet and mmseg, which take no handles. Importing `visionssm.openmmlab` does it for mmengine.

    Returns:
        The modules that now know the scan.

    Raises:
        ImportError: a library is installed in a version whose table is not where it was.
    """
    return [name for name in _TABLES if find_spec(name.partition(".")[0]) is not None and _register(name)]


def _register(name: str) -> bool:
    table = getattr(import_module(name), _TABLES[name], None)
    if table is None:
        raise ImportError(
            f"{name} has no table {_TABLES[name]} in this version; give OP_HANDLES of {__name__} to its counters"
        )
    table.update(OP_HANDLES)
    return True
