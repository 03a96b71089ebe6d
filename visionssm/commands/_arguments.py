"""The command line of `tools/train.py`: timm's flag names with timm's defaults, and a recipe file below it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.data.limits import DECODERS, MAX_PIXELS
from ..errors import UserError
from ._parser import CommandParser, KeyValues, command_parser
from ._recipes import apply_recipe
from ._vocabulary import add_options, int_or_auto


def build_parser(module: Any = None) -> CommandParser:
    """Return the parser of the training command; a recipe may set every option by its long name with underscores."""
    from . import train

    module = module or train
    name = module.__name__.rpartition(".")[2]
    parser = command_parser(
        module.__name__,
        module.__doc__,
        usage=f"visionssm {name} -c RECIPE --data-dir DIR --output DIR [--resume auto] [options]",
    )
    parser.add_argument("-c", "--config", metavar="RECIPE", help="recipe below the command line, by name or file")
    parser.former["--device-modules"] = "--import"
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    add_device(parser.add_argument_group("device and precision"))
    _add_sharding(parser.add_argument_group("sharding"))
    add_optimizer(parser.add_argument_group("optimizer"))
    add_schedule(parser.add_argument_group("learning rate schedule"))
    _add_augmentation(parser.add_argument_group("augmentation and regularisation"))
    _add_batchnorm(parser.add_argument_group("batch normalisation"))
    add_ema(parser.add_argument_group("weight averaging"))
    _add_distillation(parser.add_argument_group("knowledge distillation"))
    add_run(parser.add_argument_group("run"))
    if hasattr(module, "add_options"):
        module.add_options(parser)
    return parser


def parse_args(argv: list[str] | None = None, module: Any = None) -> argparse.Namespace:
    """Parse a command line; options of the recipe given with `-c` lie below it.

    Raises:
        UserError: The recipe is missing, not YAML, or has an unknown key or a value of the wrong type; or two data
            folders are given.
    """
    parser = build_parser(module)
    recipe = parser.parse_known_args(argv)[0].config
    if recipe:
        apply_recipe(parser, recipe)
    args = parser.parse_args(argv)
    if args.data and args.data_dir and args.data != args.data_dir:
        raise UserError(f"two data folders given: {args.data} and --data-dir {args.data_dir}")
    args.data_dir = args.data_dir or args.data
    del args.data
    if args.labels and args.data_dir and Path(args.labels).resolve().is_relative_to(Path(args.data_dir).resolve()):
        args.labels = Path(args.labels).resolve().relative_to(Path(args.data_dir).resolve()).as_posix()
    if args.scan:
        args.model_kwargs = {**args.model_kwargs, "scan": args.scan}
    del args.scan, args.debug
    if args.in_chans is None and args.input_size is not None:
        args.in_chans = args.input_size[0]
    return args


def _add_data(group) -> None:
    add = group.add_argument
    add("data", nargs="?", metavar="DIR", help="the same as --data-dir, as timm takes it")
    add_options(group, "data-dir", "dataset")
    add("--train-split", metavar="NAME", default="train", help="training split")
    add("--val-split", metavar="NAME", default="validation", help="validation split")
    add("--train-num-samples", type=int, metavar="N", help="samples in the training split, for streamed data sets")
    add("--val-num-samples", type=int, metavar="N", help="samples in the validation split, for streamed data sets")
    add("--dataset-download", action="store_true", help="let torch/, hfids/ and tfds/ data sets download")
    add_options(group, "labels", "val-fraction", "class-map", "input-img-mode")
    add_image_limits(group)
    add_options(group, "input-key", "target-key")
    add("--epoch-repeats", type=float, default=0.0, metavar="N", help="repeats of a streamed data set per epoch")
    add_options(group, "bad-images")
    add(
        "--balanced-sampling",
        action="store_true",
        help="draw images so that an epoch sees every class as often, with replacement",
    )
    add_options(group, "workers", help="loader processes per training process; auto: one per core, at most 4")
    add("--decoder", choices=DECODERS, default="pillow", help="what decodes JPEG, PNG and WebP files in colour")
    add("--pin-mem", action="store_true", help="pin host memory for faster copies to a GPU")


def add_image_limits(group) -> None:
    """Add how images that are not 8-bit, or very large, are read; validate and predict take the same."""
    add = group.add_argument
    add(
        "--pixel-range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="values that become black and white where images are not 8-bit; 0 65535 for 16 bits, 0 1 for floats",
    )
    add(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse images of more pixels, which could fill the memory; 0 for no limit",
    )


def _add_model(group) -> None:
    add = group.add_argument
    add_options(group, "model", default="resnet50")
    add_options(group, "model-kwargs", "scan", "pretrained")
    add("--pretrained-path", metavar="FILE", help="start from this file as if it were the published weights")
    add("--initial-checkpoint", metavar="PATH", default="", help="start from the weights of an earlier run")
    add_options(group, "num-classes", "gp", "in-chans", "img-size")
    add("--input-size", nargs=3, type=int, metavar="N", help="channels, height, width of the input")
    add_options(group, "crop-pct", "crop-mode", "mean", "std", "interpolation")
    add_options(
        group, "batch-size", type=int_or_auto, default=128, help="images per step and process; auto: by the images"
    )
    add(
        "-vb", "--validation-batch-size", type=int, metavar="N", help="evaluation batch size; --batch-size if not given"
    )
    add("--grad-accum-steps", type=int, default=1, metavar="N", help="steps per optimizer update")
    add_options(group, "grad-checkpointing", "channels-last")
    add("--fast-norm", action="store_true", help="normalisation layers in low precision under AMP")
    add("--head-init-scale", type=float, metavar="X", help="factor on the classifier's initial weights")
    add("--head-init-bias", type=float, metavar="X", help="initial bias of the classifier")
    add_options(group, "torchcompile", "torchcompile-mode")


def add_device(group) -> None:
    """Add where a run computes and in which precision."""
    add = group.add_argument
    add_options(group, "device", "amp", "amp-dtype")
    add("--no-ddp-bb", action="store_true", help="do not broadcast buffers in DDP")
    add("--dist-backend", metavar="NAME", help="nccl or gloo; by the device when not given")
    add("--dist-timeout", type=float, default=600.0, metavar="SECONDS", help="wait for a silent peer before giving up")


def _add_sharding(group) -> None:
    add = group.add_argument
    add("--fsdp", action="store_true", help="shard weights, gradients and optimizer state over the processes (FSDP2)")
    add("--fsdp-offload", action="store_true", help="with --fsdp: keep the shares on the CPU between uses")


def add_optimizer(group) -> None:
    """Add the optimizer."""
    add = group.add_argument
    add("--opt", metavar="NAME", default="sgd", help="timm optimizer name")
    add("--opt-eps", type=float, metavar="X", help="optimizer epsilon")
    add("--opt-betas", nargs="+", type=float, metavar="X", help="optimizer betas")
    add("--opt-kwargs", nargs="*", default={}, action=KeyValues, metavar="KEY=VALUE", help="more optimizer arguments")
    add("--momentum", type=float, default=0.9, metavar="X", help="momentum")
    add("--weight-decay", type=float, default=2e-5, metavar="X", help="weight decay")
    add("--clip-grad", type=float, metavar="X", help="gradient clipping")
    add("--clip-mode", choices=("norm", "value", "agc"), default="norm", help="gradient clipping mode")
    add("--layer-decay", type=float, metavar="X", help="learning rate factor per layer below the head")
    add("--layer-decay-min-scale", type=float, default=0.0, metavar="X", help="lower bound of that factor")
    add("--layer-decay-no-opt-scale", type=float, metavar="X", help="freeze layers whose factor is below this")


def add_schedule(group) -> None:
    """Add the learning rate's course."""
    add = group.add_argument
    add("--lr", type=float, metavar="X", help="learning rate as it is; otherwise from --lr-base")
    add("--lr-base", type=float, default=0.1, metavar="X", help="learning rate at --lr-base-size images per update")
    add("--lr-base-size", type=int, default=256, metavar="N", help="images per update that --lr-base belongs to")
    add("--lr-base-scale", choices=("", "linear", "sqrt"), default="", help="scaling rule; by the optimizer when empty")
    add(
        "--sched", metavar="NAME", default="cosine", help="cosine, step, multistep, poly, tanh, plateau, wsd, none, ..."
    )
    add("--sched-on-updates", action="store_true", help="change the learning rate after every update, not every epoch")
    add("--epochs", type=int_or_auto, default=300, metavar="N", help="epochs; auto: 10 to 50, fewer of more images")
    add("--start-epoch", type=int, metavar="N", help="first epoch, overriding a resumed checkpoint")
    add("--warmup-epochs", type=int, default=5, metavar="N", help="warm-up epochs")
    add("--warmup-lr", type=float, default=1e-5, metavar="X", help="learning rate that the warm-up starts from")
    add("--warmup-prefix", action="store_true", help="add the warm-up to --epochs instead of taking it from them")
    add("--cooldown-epochs", type=int, default=0, metavar="N", help="epochs at the lowest rate after the schedule")
    add("--min-lr", type=float, default=0.0, metavar="X", help="lowest learning rate")
    add("--decay-epochs", type=float, default=90, metavar="N", help="epochs between decays (step)")
    add(
        "--decay-milestones",
        nargs="+",
        type=int,
        default=[90, 180, 270],
        metavar="N",
        help="epochs of decay (multistep)",
    )
    add("--decay-rate", "--dr", type=float, default=0.1, metavar="X", help="decay factor")
    add("--patience-epochs", type=int, default=10, metavar="N", help="patience (plateau)")
    add("--lr-noise", nargs="+", type=float, metavar="X", help="schedule fractions between which the rate is noisy")
    add("--lr-noise-pct", type=float, default=0.67, metavar="X", help="bound of that noise")
    add("--lr-noise-std", type=float, default=1.0, metavar="X", help="deviation of that noise")
    add("--lr-cycle-mul", type=float, default=1.0, metavar="X", help="growth of cycles")
    add("--lr-cycle-decay", type=float, default=0.5, metavar="X", help="decay per cycle")
    add("--lr-cycle-limit", type=int, default=1, metavar="N", help="number of cycles")
    add("--lr-k-decay", type=float, default=1.0, metavar="X", help="k-decay (cosine, poly)")


def _add_augmentation(group) -> None:
    add = group.add_argument
    add("--no-aug", action="store_true", help="no random augmentation at all")
    add("--train-crop-mode", choices=("rrc", "rkrc", "rkrr"), help="training crop")
    add("--scale", nargs=2, type=float, default=[0.08, 1.0], metavar="X", help="area range of the random crop")
    add("--ratio", nargs=2, type=float, default=[3 / 4, 4 / 3], metavar="X", help="aspect range of the random crop")
    add("--hflip", type=float, default=0.5, metavar="P", help="horizontal flip probability")
    add("--vflip", type=float, default=0.0, metavar="P", help="vertical flip probability")
    add("--color-jitter", type=float, default=0.4, metavar="X", help="colour jitter")
    add("--color-jitter-prob", type=float, metavar="P", help="colour jitter probability")
    add("--grayscale-prob", type=float, metavar="P", help="grey conversion probability")
    add("--gaussian-blur-prob", type=float, metavar="P", help="blur probability")
    add("--aa", metavar="POLICY", help="AutoAugment, RandAugment or AugMix policy of timm: rand-m9-mstd0.5-inc1")
    add("--aug-repeats", type=int, default=0, metavar="N", help="repeated augmentation: copies of a sample per epoch")
    add("--reprob", type=float, default=0.0, metavar="P", help="random erasing probability")
    add("--remode", choices=("const", "rand", "pixel"), default="pixel", help="random erasing fill")
    add("--recount", type=int, default=1, metavar="N", help="random erasing regions")
    add("--mixup", type=float, default=0.0, metavar="X", help="mixup alpha")
    add("--cutmix", type=float, default=0.0, metavar="X", help="cutmix alpha")
    add("--cutmix-minmax", nargs=2, type=float, metavar="X", help="cutmix box range instead of alpha")
    add("--mixup-prob", type=float, default=1.0, metavar="P", help="probability of mixing")
    add("--mixup-switch-prob", type=float, default=0.5, metavar="P", help="probability of cutmix when both are on")
    add("--mixup-mode", choices=("batch", "pair", "elem"), default="batch", help="what one mixing draw covers")
    add("--mixup-off-epoch", type=int, default=0, metavar="N", help="no mixing from this epoch on; 0 never")
    add("--smoothing", type=float, default=0.1, metavar="X", help="label smoothing")
    add(
        "--class-weights",
        nargs="+",
        metavar="balanced|X",
        help="weights of the classes in the loss: balanced for those inverse to their images, or one value per class",
    )
    add("--bce-loss", action="store_true", help="binary cross-entropy")
    add("--bce-sum", action="store_true", help="sum it over the classes")
    add("--bce-target-thresh", type=float, metavar="X", help="make soft targets binary above this")
    add("--train-interpolation", metavar="NAME", default="random", help="training resampling")
    add("--drop", type=float, default=0.0, metavar="P", help="dropout")
    add("--drop-path", type=float, metavar="P", help="stochastic depth")
    add("--drop-block", type=float, metavar="P", help="drop block, for models that have it")


def _add_batchnorm(group) -> None:
    add = group.add_argument
    add("--bn-momentum", type=float, metavar="X", help="momentum, for models that take it")
    add("--bn-eps", type=float, metavar="X", help="epsilon, for models that take it")
    add("--sync-bn", action="store_true", help="statistics over all processes")
    add(
        "--dist-bn",
        choices=("broadcast", "reduce", ""),
        default="reduce",
        help="make the running statistics of all processes equal after an epoch",
    )


def add_ema(group) -> None:
    """Add the averaged weights."""
    add = group.add_argument
    add("--model-ema", action="store_true", help="keep an exponential moving average of the weights")
    add("--model-ema-decay", type=float, default=0.9998, metavar="X", help="decay")
    add("--model-ema-warmup", action="store_true", help="smaller decay in the beginning")
    add("--model-ema-force-cpu", action="store_true", help="average on the CPU, without evaluating it")
    add(
        "--mesa",
        type=float,
        default=0.0,
        metavar="X",
        help="weight of the divergence from the averaged weights' predictions in the loss (MESA, arXiv:2205.14083); "
        "needs --model-ema",
    )
    add("--mesa-start-epoch", type=int, metavar="N", help="first epoch with it; after a quarter of them if not given")
    add("--mesa-temperature", type=float, default=1.0, metavar="X", help="softmax temperature of it")


def _add_distillation(group) -> None:
    add = group.add_argument
    add("--kd-model-name", metavar="NAME", help="teacher, a timm model name")
    add("--kd-pretrained-path", metavar="FILE", help="teacher weights instead of the published ones")
    add("--kd-distill-type", choices=("logit", "feature", "token"), default="logit", help="what is distilled")
    add(
        "--kd-loss-type", default="kl", metavar="NAME", help="distillation loss: kl (logit), cosine, mse, ... (feature)"
    )
    add("--kd-token-distill-type", choices=("soft", "hard"), default="soft", help="token distillation target")
    add("--kd-student-feature-dim", type=int, metavar="N", help="student features, when they cannot be detected")
    add("--kd-teacher-feature-dim", type=int, metavar="N", help="teacher features, when they cannot be detected")
    add("--kd-temperature", type=float, default=4.0, metavar="X", help="softmax temperature")
    add("--distill-loss-weight", type=float, metavar="X", help="weight of the distillation loss")
    add(
        "--task-loss-weight", type=float, metavar="X", help="weight of the label loss; alone: the teacher gets the rest"
    )


def add_run(group, metrics: Sequence[str] = ("top1", "top5", "loss")) -> None:
    """Add the run: its folder, where it begins, how often it tells and stores; the first metric is the default."""
    add = group.add_argument
    add("--output", metavar="DIR", default="output/train", help="run folder, or the folder above it with --experiment")
    add("--experiment", metavar="NAME", default="", help="name of the run folder inside --output")
    add("--overwrite", action="store_true", help="replace an earlier run in the same folder")
    add("--resume", metavar="auto|FILE", default="", help="continue; auto: the newest readable checkpoint")
    add("--no-resume-opt", action="store_true", help="resume the weights without optimizer and progress")
    add_options(group, "seed", "log-interval")
    add("--val-interval", type=int, default=1, metavar="N", help="epochs between evaluations")
    add("--recovery-interval", type=int, default=0, metavar="N", help="updates between checkpoints in an epoch; 0 none")
    add("--checkpoint-hist", type=int, default=10, metavar="N", help="epoch checkpoints kept, best first")
    add("--eval-metric", choices=metrics, default=metrics[0], help="what best means")
    add(
        "--max-nonfinite",
        type=int,
        default=20,
        metavar="N",
        help="stop after this many updates in a row whose loss or gradient is not finite; each is skipped",
    )
    add("--log-tensorboard", action="store_true", help="write TensorBoard events into the run folder")
    add("--log-wandb", action="store_true", help="log to Weights & Biases")
    add("--wandb-project", metavar="NAME", help="Weights & Biases project")
