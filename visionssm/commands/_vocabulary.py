"""Options that several commands take: one name, one meaning, one default."""

import argparse
from typing import Any

from ._parser import KeyValues

WEIGHTS = ("auto", "raw", "ema")  # visionssm.checkpoints.WEIGHTS, which a help must not wait for


def int_or_auto(text: str) -> int | str:
    """Return a whole number, or "auto" as it is."""
    return text if text == "auto" else int(text)


int_or_auto.__name__ = "int or auto"  # as errors call it


# option: its further flags, and what argparse is told
OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    # model
    "model": ((), dict(metavar="NAME", help="timm model name, ours included")),
    "model-kwargs": (
        (),
        dict(nargs="*", default={}, action=KeyValues, metavar="KEY=VALUE", help="constructor arguments"),
    ),
    "scan": ((), dict(metavar="ORDER", help="scan order of the model, the same as --model-kwargs scan=ORDER")),
    "checkpoint": ((), dict(metavar="PATH", help="folder or checkpoint of a run, or an author's weight file")),
    "pretrained": (
        (),
        dict(action=argparse.BooleanOptionalAction, default=False, help="use the published weights"),
    ),
    "weights": (
        (),
        dict(
            choices=WEIGHTS,
            default="auto",
            help="which weights of the file; auto takes the averaged ones where there are any",
        ),
    ),
    "use-ema": ((), dict(dest="weights", action="store_const", const="ema", help="the same as --weights ema")),
    "num-classes": ((), dict(type=int, metavar="N", help="classes of the model")),
    "in-chans": ((), dict(type=int, metavar="N", help="input channels")),
    "gp": ((), dict(metavar="POOL", help="global pooling type")),
    # images
    "img-size": ((), dict(type=int, metavar="N", help="input height and width; the model's own when not given")),
    "crop-pct": ((), dict(type=float, metavar="X", help="evaluation: crop size / resized size")),
    "crop-mode": ((), dict(metavar="NAME", help="evaluation crop: center, squash or border")),
    "interpolation": ((), dict(default="", metavar="NAME", help="evaluation resampling")),
    "mean": ((), dict(nargs="+", type=float, metavar="X", help="mean of the input channels, 0 to 1")),
    "std": ((), dict(nargs="+", type=float, metavar="X", help="deviation of the input channels, 0 to 1")),
    "input-img-mode": (
        (),
        dict(
            metavar="MODE",
            help="8-bit Pillow mode that images are converted to; L, LA, RGB or RGBA by --in-chans 1 to 4",
        ),
    ),
    "bad-images": (
        (),
        dict(
            choices=("refuse", "skip"),
            default="refuse",
            help="on an image that cannot be read: stop and name it, or name it and go on without it",
        ),
    ),
    # data
    "data-dir": ((), dict(metavar="DIR", help="data set folder: with a folder for each split, or of class folders")),
    "dataset": (
        (),
        dict(
            default="",
            metavar="NAME",
            help="'' for an image folder or tar, or torch/, wds/, hfds/, hfids/, tfds/",
        ),
    ),
    "class-map": ((), dict(metavar="FILE", default="", help="text file: class name to index")),
    "labels": (
        (),
        dict(
            metavar="CSV",
            help="table of images and their classes, in place of class folders: columns image and label, and split",
        ),
    ),
    "val-fraction": (
        (),
        dict(
            type=float,
            metavar="X",
            help="part of each class held out for validation where the data has no such split; always the same images",
        ),
    ),
    "input-key": ((), dict(metavar="KEY", help="key of the image in a streamed data set")),
    "target-key": ((), dict(metavar="KEY", help="key of the label in a streamed data set")),
    "batch-size": (("-b",), dict(type=int, default=64, metavar="N", help="images per forward pass")),
    "workers": (
        ("-j",),
        dict(type=int_or_auto, default="auto", metavar="N", help="loader processes; auto: one per core, at most 4"),
    ),
    # device and precision
    "device": ((), dict(default="auto", metavar="NAME", help="cuda, cpu, ...; auto takes the GPU when there is one")),
    "amp": ((), dict(action="store_true", help="mixed precision")),
    "amp-dtype": (
        (),
        dict(choices=("float16", "bfloat16"), default="float16", help="lower precision of --amp"),
    ),
    "channels-last": ((), dict(action="store_true", help="channels-last memory format")),
    "grad-checkpointing": ((), dict(action="store_true", help="recompute activations in the backward pass")),
    "torchcompile": ((), dict(nargs="?", const="inductor", metavar="BACKEND", help="compile the model")),
    "torchcompile-mode": ((), dict(metavar="MODE", help="torch.compile mode")),
    # output
    "results-file": ((), dict(metavar="FILE", help="write the rows here, as CSV or JSON by the file's ending")),
    "results-format": ((), dict(choices=("csv", "json"), help="format of --results-file, in place of its ending")),
    "plot": ((), dict(metavar="PNG", help="picture of the figures")),
    "log-interval": ((), dict(type=int, default=50, metavar="N", help="steps between log lines")),
    "seed": ((), dict(type=int, default=42, metavar="N", help="seed of all random numbers")),
    "topk": ((), dict(type=int, default=5, metavar="N", help="classes per image")),
}


# options whose default belongs to the command: what a method or a sweep is, or which split or data a thing is made of
OWN_DEFAULTS = {
    "batch-size",
    "clip-grad",
    "decay-milestones",
    "decay-rate",
    "decoder",
    "epochs",
    "eval-metric",
    "in-chans",
    "log-interval",
    "lr",
    "model",
    "model-ema-decay",
    "opt",
    "opt-betas",
    "output",
    "samples",
    "sched",
    "seed",
    "split",
    "warmup-epochs",
    "weight-decay",
}
# former or foreign names of options that no command may take
FORMER = {
    "--work-dir": "--output",
    "--data-root": "--data-dir",
    "--precision": "--amp --amp-dtype",
    "--csv": "--results-file",
    "--device-modules": "--import",
    "--ckpt": "--checkpoint",
    "--weights-file": "--checkpoint",
    "--image-size": "--img-size",
    "--data-path": "--data-dir",
    "--num-workers": "--workers",
    "--out": "--output",
    "--output-dir": "--output",
    "--top-k": "--topk",
    "--random-seed": "--seed",
}


def add_options(group: Any, *names: str, **overrides: Any) -> None:
    """Add options of the vocabulary to a parser or a group of it.

    Args:
        group: Parser or group.
        names: Options without dashes.
        overrides: What this command says otherwise to argparse, for all of them.
    """
    for name in names:
        flags, told = OPTIONS[name]
        group.add_argument(*flags, f"--{name}", **told | overrides)
