"""Restoration models by name or from a run's checkpoint, and how close what they make comes to the truth."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from ...checkpoints import load, read
from ...errors import UserError
from ...restoration import RestorationModel, create_model
from ..data.restoration import to_image


def load_restorer(
    name: str | None,
    checkpoint: str | None,
    *,
    weights: str = "auto",
    device: torch.device | str = "cpu",
    model_kwargs: Mapping[str, Any] | None = None,
) -> tuple[str, RestorationModel]:
    """Build a restoration model, with the weights of a file.

    Args:
        name: One of `visionssm.restoration.list_models`; may be left out for a checkpoint of a training run.
        checkpoint: A run's checkpoint or an author's weight file; None for initial weights.
        weights: Which weights of the file, by the rule of `visionssm.checkpoints.read`: "auto", "raw" or "ema".
        device: Where the model goes.
        model_kwargs: Constructor arguments, above those of the run.

    Returns:
        The name and the model, in evaluation mode.

    Raises:
        UserError: There is no such model, it refuses an argument, or the file does not fill it.
    """
    source = read(checkpoint, weights) if checkpoint else None
    stored = source.options if source else {}
    found = stored.get("model")
    if name is None and found is None:
        raise UserError(f"checkpoint {checkpoint} does not say its model; name it with --model")
    if name and found and name != found:
        raise UserError(f"checkpoint {checkpoint} is of model {found!r}, expected {name!r}")
    chosen = str(name or found)
    model = build_restorer(chosen, dict(stored.get("model_kwargs") or {}) | dict(model_kwargs or {}))
    if source:
        load(source, model)
    return chosen, model.to(device).eval()


def build_restorer(name: str, arguments: Mapping[str, Any]) -> RestorationModel:
    """Build a restoration model with initial weights.

    Raises:
        UserError: There is no such model, or it refuses an argument.
    """
    try:
        return create_model(name, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"model {name!r} cannot be built: {error}") from error


def fidelity(restored: torch.Tensor, truth: torch.Tensor, border: int = 0, space: str = "y") -> tuple[float, float]:
    """Peak signal-to-noise ratio and structural similarity, by scikit-image, of images rounded to 8 bits.

    The structural similarity is that of Wang et al. (2004): Gaussian windows of 11 pixels, deviation 1.5.

    Args:
        restored: (c, h, w) with values in [0, 1], what lies outside is cut; c is 1 or 3.
        truth: The same.
        border: Pixels left out at all sides, in super-resolution the scale.
        space: "y" for the luma of ITU-R BT.601 with levels from 16 to 235, as super-resolution is compared; "rgb" for
            all channels. Grey images are compared as they are.

    Returns:
        PSNR in dB and SSIM.

    Raises:
        UserError: scikit-image is missing, or the images are of other sizes or too small for SSIM's window.
    """
    try:
        from skimage.color import rgb2ycbcr  # noqa: PLC0415  optional package
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # noqa: PLC0415
    except ImportError as error:
        raise UserError("PSNR and SSIM need scikit-image: pip install 'visionssm[restoration]'") from error
    if restored.shape != truth.shape:
        raise UserError(f"restored image is of {tuple(restored.shape)}, the truth of {tuple(truth.shape)}")
    images = []
    for image in (restored, truth):
        levels = np.asarray(to_image(image))
        values = rgb2ycbcr(levels)[..., 0] if levels.ndim == 3 and space == "y" else levels.astype(np.float64)
        images.append(values[border : values.shape[0] - border, border : values.shape[1] - border])
    one, two = images
    if min(one.shape[:2]) < 11:
        raise UserError(f"SSIM needs 11 x 11 pixels inside the border, got {one.shape[0]} x {one.shape[1]}")
    with np.errstate(divide="ignore"):  # equal images
        psnr = peak_signal_noise_ratio(two, one, data_range=255)
    ssim = structural_similarity(
        one,
        two,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1 if one.ndim == 3 else None,
    )
    return float(psnr), float(ssim)


@torch.inference_mode()
def evaluate_restoration(
    model: torch.nn.Module,
    loader: Iterable,
    device: torch.device,
    *,
    autocast: Callable[[], AbstractContextManager],
    on_batch: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    channels_last: bool = False,
    space: str = "y",
) -> dict[str, float]:
    """Evaluate a model on whole images.

    Args:
        model: Module from images to images, larger by an integer scale; left in evaluation mode.
        loader: Degraded and sharp images on the device, one each; the shares of all processes are averaged.
        device: Where the images are.
        autocast: Context of the forward pass.
        on_batch: Called with what was restored and the truth of every image; what it raises ends the evaluation.
        channels_last: Give the model channels-last images.
        space: As for `fidelity`.

    Returns:
        `{"loss": mean absolute error, "psnr": dB, "ssim": ...}`, means over images.
    """
    model.eval()
    total = torch.zeros(4, dtype=torch.float64, device=device)
    for low, sharp in loader:
        if channels_last:
            low = low.contiguous(memory_format=torch.channels_last)
        with autocast():
            restored = model(low)
        scale = sharp.shape[2] // low.shape[2]
        numbers = fidelity(restored[0], sharp[0], scale if scale > 1 else 0, space)
        total += total.new_tensor([1.0, (restored.float() - sharp).abs().mean().item(), *numbers])
        if on_batch is not None:
            on_batch(restored, sharp)
    if dist.is_initialized():
        dist.all_reduce(total)
    count, *sums = total.tolist()
    return dict(zip(("loss", "psnr", "ssim"), (value / count for value in sums), strict=True))
