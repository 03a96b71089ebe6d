"""Say what a model or a run is: figures, input, scan orders, weights, classes, what a run was told.

python tools/info.py vmamba_tiny_s1l8
python tools/info.py work/demo
"""

import json
from pathlib import Path
from typing import Any

from ._boundary import bounded
from ._parser import CommandParser, command_parser


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("name", metavar="NAME", help="a model's name, or the folder or checkpoint of a run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    facts = of_run(args.name) if Path(args.name).exists() else of_model(args.name)
    if args.json:
        print(json.dumps(facts, indent=2, default=str))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        print(f"{name:{width}}  {text}")
    return 0


def of_model(name: str) -> dict[str, Any]:
    """Return what is known of a model without building it.

    Raises:
        UserError: There is no such model.
    """
    from timm.models import get_pretrained_cfg, is_model, list_models, list_pretrained

    from ..errors import UserError, nearest
    from ._cards import published
    from ._recipes import recipes

    architecture = name.partition(".")[0]
    if not is_model(architecture):
        raise UserError(f"there is no model {name!r}, and no such folder or file{nearest(architecture, list_models())}")
    cfg = get_pretrained_cfg(name, allow_unregistered=False)
    facts: dict[str, Any] = {"model": name}
    if cfg is not None:
        facts |= {
            "input": " x ".join(map(str, cfg.input_size)),
            "mean": cfg.mean,
            "std": cfg.std,
            "crop": f"{cfg.crop_pct:g}, {cfg.interpolation}",
            "classes": cfg.num_classes,
            "weights": cfg.url or cfg.hf_hub_id or "none known",
        }
        facts |= {key: value for key in ("license", "paper_name", "origin_url") if (value := getattr(cfg, key, None))}
    facts["published names"] = list_pretrained(f"{architecture}.*") or "none"
    facts |= {f"published {key}": value for key, value in published().get(architecture, {}).items()}
    facts["recipes"] = [key for key in recipes() if key.rpartition("/")[2].startswith(architecture)] or "none"
    return facts


def of_run(path: str) -> dict[str, Any]:
    """Return what a checkpoint says of itself.

    Raises:
        CheckpointError: It cannot be read.
    """
    from ..checkpoints import read

    source = read(path)
    stored, state = source.run.get("facts", {}), source.run
    facts: dict[str, Any] = {
        "file": str(source.path),
        "parameters": f"{sum(w.numel() for w in source.weights.values()):,} values in {len(source.weights)} tensors",
    }
    if not state:
        return facts | {"run": "none of ours: a file of weights"}
    config = stored.get("data_config", {})
    facts |= {
        "model": source.options.get("model"),
        "model_kwargs": source.options.get("model_kwargs") or "none",
        "epochs done": state.get("epoch"),
        "input": " x ".join(map(str, config.get("input_size", ()))),
        "mean": config.get("mean"),
        "std": config.get("std"),
        "classes": stored.get("classes") or source.options.get("num_classes"),
        "training images": stored.get("train_images"),
        "imports": source.options.get("device_modules") or "none",
    }
    told = ("opt", "lr", "lr_base", "weight_decay", "batch_size", "epochs", "sched", "seed", "data_dir")
    return facts | {name: source.options[name] for name in told if source.options.get(name) is not None}
