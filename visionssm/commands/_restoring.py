"""The work of the restoration command: from files to files, with figures where the truth is known."""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..engine.data.images import ImageReader
from ..engine.data.processes import resolve_device
from ..engine.data.restoration import Degradation, pair_up, to_image, to_tensor, whole_pair
from ..engine.inference.models import autocast
from ..engine.inference.prediction import find_images
from ..engine.inference.restoration import fidelity, load_restorer
from ..engine.reports.progress import Progress
from ..engine.reports.rows import write_rows
from ..errors import UserError
from ..files import write_atomically
from ..restoration import RestorationModel, tiled


def restore(args: argparse.Namespace) -> list[dict]:
    """Restore as the options say; returns a row per image.

    Raises:
        UserError: Something about options, images or checkpoint needs the user.
    """
    if args.references and args.degradation:
        raise UserError("--references and --degradation both say what the truth is; give one of them")
    if args.picture and not (args.references or args.degradation):
        raise UserError("--picture shows the truth too: give --references or --degradation")
    if args.tile and not 0 <= args.overlap < args.tile:
        raise UserError(f"--overlap must be at least 0 and below --tile, got {args.overlap} and {args.tile}")
    device = resolve_device(args.device)
    degradation = Degradation.parse(args.degradation) if args.degradation else None
    paths = find_images(args.images)
    targets = outputs_of(paths, Path(args.output))
    name, model = load_restorer(
        args.model, args.checkpoint, weights=args.weights, device=device, model_kwargs=args.model_kwargs
    )
    channels, scale = model.in_chans, model.scale
    if channels not in (1, 3):
        raise UserError(f"image files have 1 or 3 channels, model {name!r} takes {channels}")
    if degradation is not None:
        degradation.check_scale(scale)
    sharp_of: dict[Path, Path] = {}
    if args.references:
        references = find_images(args.references)
        wanted = {path.stem.removesuffix(f"x{scale}") for path in paths} | {path.stem for path in paths}
        sharp_of = {
            low: sharp for sharp, low in pair_up([path for path in references if path.stem in wanted], paths, scale)
        }
        if missing := [path for path in paths if path not in sharp_of]:
            raise UserError(f"{missing[0]} and {len(missing) - 1} more have no image of the same name in --references")
    context = autocast(device, args.amp_dtype if args.amp else None)
    rows, shown = [], []
    progress = Progress("restore", len(paths), interval=1)
    for path, target in zip(paths, targets, strict=True):
        truth = None
        if degradation is not None:
            low, truth = whole_pair(path, None, degradation, channels, scale)
        elif path in sharp_of:
            low, truth = whole_pair(sharp_of[path], path, None, channels, scale)
        else:
            low = to_tensor(ImageReader(channels).read(path, str(path)))
        started = time.perf_counter()
        with torch.inference_mode(), context():
            restored = run(model, low[None].to(device), args.tile, args.overlap)[0].float().cpu()
        row: dict[str, Any] = {"image": str(path), "height": restored.shape[1], "width": restored.shape[2]}
        row["seconds"] = round(time.perf_counter() - started, 3)
        if truth is not None:
            border = scale if scale > 1 else 0
            row["psnr"], row["ssim"] = (round(v, 4) for v in fidelity(restored, truth, border, args.space))
            before = enlarged(low, scale)
            row["psnr_before"], row["ssim_before"] = (round(v, 4) for v in fidelity(before, truth, border, args.space))
            shown.append((path.name, before, restored, truth, row["psnr_before"], row["psnr"]))
        image = to_image(restored)
        write_atomically(target, partial(image.save, format="PNG"))
        rows.append(row)
        figures = {key: row[key] for key in ("psnr", "ssim") if key in row}
        progress.advance(1, partial(dict, figures))
    progress.close()
    print(f"{name}: {len(rows)} images in {args.output}")
    if shown:
        mean = {
            key: sum(row[key] for row in rows) / len(rows) for key in ("psnr", "ssim", "psnr_before", "ssim_before")
        }
        what = "luma" if args.space == "y" and channels == 3 else "all channels"
        print(
            f"mean of {len(rows)} images, {what}: PSNR {mean['psnr']:.2f} dB, SSIM {mean['ssim']:.4f}; before: "
            f"PSNR {mean['psnr_before']:.2f} dB, SSIM {mean['ssim_before']:.4f}"
            + (" (enlarged by bicubic interpolation)" if scale > 1 else "")
        )
    if args.results_file:
        write_rows(args.results_file, rows, args.results_format)
    if args.picture:
        from ..engine.reports.plots import draw_restorations  # noqa: PLC0415  matplotlib is heavy

        draw_restorations(shown[:4], args.picture, f"{name}, scale {scale}")
        print(f"picture: {args.picture}")
    return rows


def outputs_of(paths: list[Path], folder: Path) -> list[Path]:
    """Files to write, one for each image.

    Raises:
        UserError: Two images would have one, or one would take the place of an image.
    """
    targets = [folder / f"{path.stem}.png" for path in paths]
    taken: dict[Path, Path] = {}
    for path, target in zip(paths, targets, strict=True):
        if target in taken:
            raise UserError(f"{taken[target]} and {path} would both become {target}; restore their folders one by one")
        taken[target] = path
    if clash := {path.resolve() for path in paths} & {target.resolve() for target in targets}:
        raise UserError(f"{min(clash)} would be replaced by what is made of it; choose another --output")
    return targets


def run(model: RestorationModel, image: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
    """Restore an image (1, c, h, w), by tiles where a side is longer than one.

    Raises:
        UserError: The image is smaller than the model can take.
    """
    try:
        return tiled(model, image, tile, overlap) if tile and max(image.shape[2:]) > tile else model(image)
    except ValueError as error:
        raise UserError(str(error)) from error


def enlarged(image: torch.Tensor, scale: int) -> torch.Tensor:
    """What one would have without the model: the image itself, or its bicubic interpolation."""
    if scale == 1:
        return image
    return torch.nn.functional.interpolate(image[None], scale_factor=scale, mode="bicubic", antialias=True)[0]
