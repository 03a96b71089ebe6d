"""Export of a classifier with torch.export or to ONNX, checked against the model it was made from."""

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

FORMATS = {".pt2": "export", ".onnx": "onnx"}


def export_model(model: nn.Module, image: Tensor, path: str | Path, dynamic_batch: bool = True) -> float:
    """Write `model` as a program for images of one size and, if `dynamic_batch`, for any number of them.

    Args:
        model: A classifier; put into evaluation mode.
        image: Example images (b, c, h, w), b at least 2 for a dynamic batch.
        path: The file to write; its ending, .pt2 (torch.export) or .onnx, says the format.
        dynamic_batch: Leave the batch size open.

    Returns:
        The largest difference between the written program's output and the model's, on other images and, if the batch
        is dynamic, on one image only.

    Raises:
        ValueError: the ending is not known.
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"cannot tell the format from {path.name!r}; the ending must be one of {', '.join(FORMATS)}")
    if path.suffix == ".onnx":
        _require_onnx()
    model.eval()
    shapes = {0: torch.export.Dim("batch", max=4096)} if dynamic_batch else None
    with torch.no_grad():
        program = torch.export.export(model, (image,), dynamic_shapes=(shapes,))
        handle, temporary = tempfile.mkstemp(dir=path.resolve().parent, suffix=path.suffix)
        os.close(handle)
        try:
            test = torch.randn_like(image[:1] if dynamic_batch else image)
            if path.suffix == ".pt2":
                torch.export.save(program, temporary)
                output = torch.export.load(temporary).module()(test)
            else:
                onnx_program = torch.onnx.export(program, dynamo=True, verbose=False)
                assert onnx_program is not None, "with dynamo the program is returned"
                onnx_program.save(temporary)
                output = _run_onnx(temporary, test)
            difference = (output - model(test)).abs().max().item()
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return difference


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export to ONNX needs the package {error.name}; install the extra: pip install 'visionssm[export]'"
        ) from error


def _run_onnx(path: str, image: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])
