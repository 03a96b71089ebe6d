"""Segmentation of image files: a picture for each, a table for all."""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmseg.apis import inference_model, init_model, show_result_pyplot
from torch import Tensor, nn

from ..engine.errors import UserError
from ..engine.prediction import find_images, read_image
from ..models import CheckpointError
from .weights import read_state_dict


def load_segmenter(config: str, checkpoint: str, device: str = "cpu") -> nn.Module:
    """Build a segmenter of mmseg and fill it, strictly.

    Args:
        config: The configuration it was trained with.
        checkpoint: File of its training, or a converted one.
        device: Where it shall run.

    Raises:
        UserError: the configuration is none of mmseg, or the weights are not those of its model.
    """
    if not Path(config).is_file():
        raise UserError(f"no configuration at {config!r}")
    cfg = Config.fromfile(config)
    if cfg.get("default_scope") != "mmseg":
        raise UserError(f"{config} is a configuration of {cfg.get('default_scope')!r}; predictions are drawn for mmseg")
    cfg.model.backbone.pretrained = False  # the checkpoint has the backbone
    weights = read_state_dict(checkpoint)
    init_default_scope("mmseg")
    model = init_model(cfg, device=device)
    own = model.state_dict()
    different = sorted(set(own) ^ set(weights)) + [
        k for k in own if k in weights and own[k].shape != weights[k].shape]
    if different:
        raise UserError(f"{checkpoint} does not hold the weights of {config}: {len(different)} names are in one only "
                        f"or of another shape, as {', '.join(different[:5])}")
    model.load_state_dict(weights)
    dataset = cfg.test_dataloader.dataset
    model.dataset_meta = DATASETS.build(dict(dataset, lazy_init=True)).metainfo  # names and colours; reads no file
    model.cfg.test_pipeline = dataset.pipeline
    return model


def segment(model: nn.Module, image: Path, picture: Path | None = None) -> Tensor:
    """Segment an image file.

    Args:
        model: As `load_segmenter` returns it.
        image: The file.
        picture: Where to draw the classes over the image, or None.

    Returns:
        Class of each pixel (height, width), int64.

    Raises:
        BadImageError: the image cannot be read.
    """
    read_image(image, "RGB")  # says which image is damaged
    result = inference_model(model, str(image))
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        show_result_pyplot(model, str(image), result, draw_gt=False, show=False, out_file=str(picture))
    return result.pred_sem_seg.data[0].cpu()


def shares(labels: Tensor, classes: Sequence[str]) -> str:
    """The classes of an image with their share of its pixels, largest first."""
    numbers, counts = labels.flatten().unique(return_counts=True)
    ranked = sorted(zip(counts.tolist(), numbers.tolist(), strict=True), reverse=True)
    return ", ".join(f"{classes[number]} {100 * count / labels.numel():.1f} %" for count, number in ranked)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="predict.py --config CONFIG", description="Segment image files with a trained model of mmseg.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders of them")
    parser.add_argument("--config", required=True, help="configuration of the segmenter")
    parser.add_argument("--checkpoint", required=True, help="file of its training, or a converted one")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="receives a picture for each image")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    args = parser.parse_args(argv)
    try:
        images = find_images(args.images)
        model = load_segmenter(args.config, args.checkpoint, args.device)
        for number, image in enumerate(images):
            picture = Path(args.output) / f"{number:04d}_{image.stem}.png"
            labels = segment(model, image, picture)
            print(f"{image} -> {picture}: {shares(labels, model.dataset_meta['classes'])}")
    except (UserError, CheckpointError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    return 0
