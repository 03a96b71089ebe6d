"""Export of a model with torch.export or to ONNX, checked against the model it was made from."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..files import replacing, replacing_pair
from ..ops import causal_conv1d, causal_ssd, quasi_separable_ssd, selective_scan, tree_scan, wavefront_scan

FORMATS = {".pt2": "export", ".onnx": "onnx"}
# of the spread of the outputs; float16 keeps eleven bits, and its errors add up through the layers
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 3e-2}
# their steps follow an order of the map, which is that of the size a program is traced at
_ORDERED = {selective_scan, causal_conv1d, tree_scan, wavefront_scan, causal_ssd, quasi_separable_ssd}
_SMALLEST = 64  # pixels of an open size: maps of one pixel are traced as another program
_ONNX_LIMIT = 2**31 - 2**24  # protobuf's limit on one file, less what is not weights


class Exported(NamedTuple):
    """What was written and how it compares.

    Attributes:
        difference: Largest difference of the written program's outputs to the model's, over their spread (the
            difference of their largest and smallest value), over all checks.
        nodes: Operators in the program.
        size: Bytes of the file, with those of weights beside it.
        checked: Shapes of the images it was checked with.
        eager: Seconds of one image in the model, the smallest of three; None if not timed.
        runtime: Seconds of one image in the written program, likewise.
    """

    difference: float
    nodes: int
    size: int
    checked: list[tuple[int, ...]]
    eager: float | None = None
    runtime: float | None = None


class FeatureMaps(nn.Module):
    """A model's feature maps instead of its logits.

    Args:
        model: A model with timm's `forward_intermediates`.
        indices: Levels, as in timm; None for all.

    Raises:
        ValueError: the model has no intermediate outputs.
    """

    def __init__(self, model: nn.Module, indices: Sequence[int] | None = None) -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"{type(model).__name__} has no forward_intermediates and so no feature maps")
        self.model = model
        self.indices = None if indices is None else list(indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(b, c, h, w) to a map (b, c, h, w) for each level."""
        return tuple(cast(Any, self.model).forward_intermediates(images, indices=self.indices, intermediates_only=True))


def export_model(
    model: nn.Module,
    image: Tensor,
    path: str | Path,
    dynamic_batch: bool = True,
    *,
    dynamic_size: bool = False,
    standalone: bool = False,
    output_name: str = "logits",
    metadata: Mapping[str, str] | None = None,
    tolerance: float | None = None,
    timed: bool = False,
    reference: bool = False,
) -> Exported:
    """Write `model` as a program for images of one size and, if `dynamic_batch`, for any number of them.

    The input of an ONNX file is called `images`.

    Args:
        model: A module from images to a tensor, several, or several by name; a compiled one is unwrapped. Put into
            evaluation mode.
        image: Example images (b, c, h, w) or volumes (b, c, d, h, w), b at least 2 for a dynamic batch; of the
            model's dtype, float32, float16 or float64.
        path: The file to write; its ending, .pt2 (torch.export) or .onnx, says the format. Weights of more than 2 GiB,
            which one ONNX file cannot hold, lie beside it, in the file of this name with `.data` at its end.
        dynamic_batch: Leave the batch size open.
        dynamic_size: Leave height and width open, from 64 pixels on. Scan orders and numbers of steps become part of
            the program, so a model that scans is refused.
        standalone: Decompose this package's operators in a .pt2, so that it loads where the package is not installed.
        output_name: Name of an ONNX file's output; several are numbered, `name_0`, `name_1`, ...;
            what has names keeps them.
        metadata: Texts to write into an ONNX file, by name.
        tolerance: Largest difference allowed, as `Exported.difference`; None for 1e-4, in float16 3e-2.
        timed: Measure how long one image takes.
        reference: Run an ONNX file in onnx's reference evaluator in the place of ONNX Runtime: slowly, but in float64
            too, where rounding does not hide what is wrong.

    Raises:
        ValueError: the ending or the dtype is not known, the model cannot be written so, or the file computes something
            else.
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"cannot tell the format from {path.name!r}; the ending must be one of {', '.join(FORMATS)}")
    if image.dtype not in TOLERANCES:
        raise ValueError(f"images of float32, float16 or float64 are needed, found {image.dtype}")
    if path.suffix == ".onnx":
        _require_onnx()
    elif reference:
        raise ValueError(f"onnx's reference evaluator runs .onnx files, not {path.name!r}; leave out reference")
    model = getattr(model, "_orig_mod", model).eval()
    with torch.no_grad():
        program = _traced(model, image, dynamic_batch, dynamic_size)
        if standalone or path.suffix == ".onnx":
            program = _decomposed(program) if path.suffix == ".pt2" else program
        with _written(path, model) as (temporary, data):
            if path.suffix == ".pt2":
                torch.export.save(program, temporary)
                run = torch.export.load(temporary).module()
                nodes = sum(node.op == "call_function" for node in program.graph.nodes)
            else:
                outputs = model(image[:1])
                count = len(_as_list(outputs))
                names = [output_name] if count == 1 else [f"{output_name}_{i}" for i in range(count)]
                names = list(outputs) if isinstance(outputs, Mapping) else names
                onnx_program = torch.onnx.export(
                    program,
                    dynamo=True,
                    verbose=False,
                    optimize=False,
                    input_names=["images"],
                    output_names=names,
                    custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
                )
                assert onnx_program is not None, "with dynamo the program is returned"
                _simplify(onnx_program.model)
                onnx_program.model.metadata_props.update(metadata or {})
                _save_onnx(onnx_program.model, temporary, data)
                nodes = sum(1 for _ in onnx_program.model.graph.all_nodes())
                run = _onnx_reference(str(temporary)) if reference else _onnx_session(str(temporary))
            shapes = _shapes(image, dynamic_batch, dynamic_size)
            difference = max(_difference(model, run, image.new_empty(shape).normal_()) for shape in shapes)
            allowed = TOLERANCES[image.dtype] if tolerance is None else tolerance
            if not difference <= allowed:  # a NaN is refused too
                raise ValueError(
                    f"the written program differs from the model by {difference:.1e} of the outputs' spread, more than "
                    f"the tolerance of {allowed:.0e}; nothing was written (give a larger tolerance for a model that "
                    "rounding alone moves so far)"
                )
            size = sum(file.stat().st_size for file in (temporary, data) if file)
            told = Exported(difference, nodes, size, shapes)
            if timed:
                one = image.new_empty(shapes[0]).normal_()
                told = told._replace(eager=_seconds(lambda: model(one)), runtime=_seconds(lambda: run(one)))
    return told


@contextlib.contextmanager
def _written(path: Path, model: nn.Module) -> Iterator[tuple[Path, Path | None]]:
    """The file to write in place of `path`, and one for the weights where ONNX needs it."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if path.suffix == ".onnx" and weights > _ONNX_LIMIT:
        with replacing_pair(path, path.with_name(f"{path.name}.data")) as pair:
            yield pair
    else:
        with replacing(path, suffix=path.suffix) as temporary:
            yield temporary, None


def _traced(model: nn.Module, image: Tensor, dynamic_batch: bool, dynamic_size: bool) -> torch.export.ExportedProgram:
    shapes: dict[int, object] = {0: torch.export.Dim("batch", max=4096)} if dynamic_batch else {}
    if dynamic_size:
        if image.ndim != 4:
            raise ValueError("only images, not volumes, can leave their size open")
        if min(image.shape[2:]) <= _SMALLEST:
            raise ValueError(f"to leave the size open, images of more than {_SMALLEST} pixels are traced")
        shapes |= {i: torch.export.Dim(side, min=_SMALLEST, max=8192) for i, side in ((2, "height"), (3, "width"))}
        if _scans(model, image):
            raise ValueError(
                f"the scan orders of {type(model).__name__} become part of the program, so its images have one size; "
                "export a file for each size"
            )
    try:
        return torch.export.export(model, (image,), dynamic_shapes=(shapes or None,))
    except torch._dynamo.exc.UserError as error:
        if not dynamic_size:
            raise
        raise ValueError(
            f"{type(model).__name__} cannot leave height and width open: export a file for each size "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


class _Seen(TorchFunctionMode):
    """Whether an operator was called whose steps follow an order of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.ordered = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.ordered |= func in _ORDERED
        return func(*args, **(kwargs or {}))


def _scans(model: nn.Module, image: Tensor) -> bool:
    with _Seen() as seen:
        model(image[:1])
    return seen.ordered


def _decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without operators of this package."""
    table = {op: rule for op, rule in torch._decomp.decomposition_table.items() if str(op).startswith("visionssm")}
    program = program.run_decompositions(table)
    left = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("visionssm")}
    if left:
        raise ValueError(
            f"{', '.join(sorted(left))} has no decomposition, so this model needs visionssm where it loads"
        )
    return program


def _stable_sort(x, *, stable=None, dim: int = -1, descending: bool = False):
    """torch.sort in ONNX, whose TopK lets the lower of equal values' indices come first."""
    from onnxscript import opset18 as op

    shape, axis = cast(tuple[Any, Any], (op.Shape(x), op.Constant(value_ints=[dim])))
    return op.TopK(x, op.Gather(shape, axis), axis=dim, largest=int(descending))


def _simplify(model) -> None:
    """Fold the constants of an ONNX model, and drop what is unused or there twice.

    The exporter's own optimizer looks for patterns as well, in a time that grows with the square of the nodes; those
    it finds are such as a runtime joins when it loads a file.
    """
    from onnx_ir.passes import Sequential, common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules.common import remove_optional_bias_from_conv_rule

    common.InlinePass()(model)
    # nodes of several outputs would be left with a warning each
    fold_constants(model, should_fold=lambda node: None if len(node.outputs) == 1 else False)
    # the exporter gives a Conv of volumes that has no bias one of zeros, and of two dimensions
    rewrite(model, [remove_optional_bias_from_conv_rule])
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _save_onnx(model, path: Path, data: Path | None) -> None:
    import onnx_ir

    onnx_ir.save(model, path, external_data=data and data.name)


def _shapes(image: Tensor, dynamic_batch: bool, dynamic_size: bool) -> list[tuple[int, ...]]:
    """Shapes to check: one image, several; and smaller, larger, not square where the size is open."""
    _, c, *size = image.shape
    sizes = [size]
    if dynamic_size:
        h, w = size
        sizes += [[h + 32, w], [max(_SMALLEST, h - 32), w + 64]]
    batches = [1, 3] if dynamic_batch else [image.shape[0]]
    return [(batches[0], c, *size) for size in sizes] + [(batch, c, *size) for batch in batches[1:]]


def _difference(model: nn.Module, run, images: Tensor) -> float:
    worst = 0.0
    for found, expected in zip(_as_list(run(images)), _as_list(model(images)), strict=True):
        if found.shape != expected.shape:
            raise ValueError(
                f"the written program returns {tuple(found.shape)} for images {tuple(images.shape)}, the model "
                f"{tuple(expected.shape)}"
            )
        found, expected = found.double(), expected.double()
        spread = (expected.max() - expected.min()).clamp(min=torch.finfo(torch.float64).tiny)
        error = ((found - expected).abs().max() / spread).item()
        worst = max(worst, error) if error == error else float("nan")
    return worst


def _as_list(outputs) -> list[Tensor]:
    if isinstance(outputs, Mapping):
        return list(outputs.values())
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


def _seconds(call) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export to ONNX needs the package {error.name}; install the extra: pip install 'visionssm[export]'"
        ) from error


def _onnx_session(path: str):
    """A function from images to the outputs of an ONNX file, in ONNX Runtime with PyTorch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; what it cannot fold ahead it computes
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: [torch.from_numpy(array) for array in session.run(None, {name: images.numpy()})]


def _onnx_reference(path: str):
    """The same function, by onnx's own evaluator in NumPy."""
    import numpy as np
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class GatherElements(OpRun):
        """onnx's own takes numpy.choose, which has no more than 64 choices."""

        def _run(self, data, indices, axis=None):
            return (np.take_along_axis(data, indices, axis or 0),)

    session = ReferenceEvaluator(path, new_ops=[GatherElements])
    return lambda images: [torch.as_tensor(array) for array in session.run(None, {"images": images.numpy()})]
