"""Deletion and insertion curves of explanations, on a trained classifier and its validation images.

    python benchmarks/faithfulness.py --checkpoint work/demo/last.pth.tar --data-dir work/digits
                                      [--images 100] [--output benchmarks/results/faithfulness.md]

Pixels are taken in the order of their relevance for the predicted class. Deletion replaces the most relevant ones first
by black, insertion begins with a black image and puts them in first; the curve is the class's probability, and the
table has its mean over the steps (the area below it), with the standard error over images. A faithful explanation has a
small area of deletion and a large one of insertion; a random order shows what the steps do by themselves.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from captum.attr import InputXGradient, IntegratedGradients
from torch import Tensor, nn

from visionssm.analysis.relevance import relevance
from visionssm.engine.inference.classifier import load_classifier
from visionssm.engine.inference.prediction import find_images
from visionssm.files import write_text

STEPS = 16

Explain = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def methods(seed: int) -> dict[str, Explain]:
    """Functions of model, images, classes and the black image, to one number per pixel (b, h, w)."""
    generator = torch.Generator().manual_seed(seed)

    def integrated(model: nn.Module, x: Tensor, target: Tensor, black: Tensor) -> Tensor:
        found = IntegratedGradients(model).attribute(x, black.expand_as(x), target=target, n_steps=32)
        return found.sum(1)

    return {
        "relevance (MambaLRP's rules)": lambda model, x, target, black: (
            relevance(model, x, target, level="pixels").values
        ),
        "gradient x input (captum)": lambda model, x, target, black: (
            InputXGradient(model).attribute(x.requires_grad_(), target=target).sum(1)
        ),
        "integrated gradients (captum, from black, 32 steps)": integrated,
        "random order": lambda model, x, target, black: torch.rand(x[:, 0].shape, generator=generator),
    }


@torch.no_grad()
def curve(model: nn.Module, start: Tensor, end: Tensor, scores: Tensor, target: Tensor) -> Tensor:
    """Probabilities of the classes (STEPS + 1, b) while pixels of `end` replace those of `start`, best scores first."""
    ranks = scores.flatten(1).argsort(1, descending=True).argsort(1).view_as(scores)
    count = ranks[0].numel()
    rows = []
    for step in range(STEPS + 1):
        replaced = (ranks < round(count * step / STEPS))[:, None]
        probabilities = model(torch.where(replaced, end, start)).softmax(1)
        rows.append(probabilities.gather(1, target[:, None])[:, 0])
    return torch.stack(rows)


def area(rows: Tensor) -> Tensor:
    """Area below each image's curve, by trapezoids: (b,)."""
    return torch.trapezoid(rows, dx=1 / STEPS, dim=0)


def measure(checkpoint: str, data_dir: str, images: int, seed: int) -> tuple[str, dict[str, tuple[Tensor, Tensor]]]:
    """Name of the model; areas of deletion and insertion (images,) by method."""
    classifier = load_classifier(None, checkpoint)
    model, config = classifier.model, classifier.data_config
    paths = find_images([Path(data_dir) / "validation"])
    chosen = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))[:images]
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    size = config["input_size"][1:]
    batch = []
    for index in chosen.tolist():
        image = classifier.reader.read(paths[index], str(paths[index])).resize(size[::-1])
        pixels = torch.from_numpy(np.array(image)).float() / 255
        batch.append(pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None])
    x = (torch.stack(batch) - mean) / std
    black = (0 - mean) / std
    with torch.no_grad():
        target = model(x).argmax(1)
    areas = {}
    for name, explain in methods(seed).items():
        scores = torch.cat(
            [explain(model, a.clone(), t, black).detach() for a, t in zip(x.split(25), target.split(25), strict=True)]
        )
        deletion = area(curve(model, x, black.expand_as(x), scores, target))
        insertion = area(curve(model, black.expand_as(x), x, scores, target))
        areas[name] = deletion, insertion
        print(f"{name}: deletion {deletion.mean():.3f}, insertion {insertion.mean():.3f}", flush=True)
    return classifier.name, areas


def write(path: Path, command: str, name: str, areas: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Write the table."""

    def told(values: Tensor) -> str:
        return f"{values.mean():.3f} ± {values.std() / math.sqrt(len(values)):.3f}"

    count = len(next(iter(areas.values()))[0])
    lines = [
        "# Faithfulness of explanations",
        "",
        f"Written by `{command}`: `{name}` as `make demo` trains it, {count} validation digits, the class it predicts, "
        f"{STEPS} steps. Areas below the curve of the class's probability, mean and standard error over images: "
        "deletion (most relevant pixels blackened first, the smaller the better), insertion (put into a black image "
        "first, the larger the better).",
        "",
        "| explanation | deletion | insertion |",
        "|---|---|---|",
    ]
    lines += [f"| {method} | {told(deletion)} | {told(insertion)} |" for method, (deletion, insertion) in areas.items()]
    write_text(path, "\n".join([*lines, ""]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="checkpoint of a run")
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="data set with a folder validation")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/faithfulness.md"))
    args = parser.parse_args(argv)
    name, areas = measure(args.checkpoint, args.data_dir, args.images, args.seed)
    command = f"python benchmarks/faithfulness.py --checkpoint {args.checkpoint} --data-dir {args.data_dir}"
    write(args.output, command + (f" --images {args.images}" if args.images != 100 else ""), name, areas)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
