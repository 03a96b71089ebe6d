"""Fill the generated tables of the model cards and of the README from the registry and the figures beside each card.

    python tools/model_cards.py [--check]

A table stands between `<!-- variants -->` and `<!-- end -->` in model_cards/<family>.md; the figures quoted in it are
in model_cards/<family>.json. `--check` changes nothing and fails if a card is not up to date.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import timm
from timm.models import get_pretrained_cfg

import visionssm  # noqa: F401
from visionssm.analysis.flops import count
from visionssm.files import write_text

CARDS = Path(__file__).resolve().parent.parent / "model_cards"
_TABLE = re.compile(r"(<!-- variants -->\n).*?(<!-- end -->)", re.DOTALL)


def variants_table(variants: dict[str, dict]) -> str:
    """Markdown table of a family: what is measured, what is quoted."""
    lines = [
        "| model | input | parameters | published | GMACs | published | published top-1 | weights |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in variants.items():
        cfg = get_pretrained_cfg(name)
        cost = count(timm.create_model(name, device="meta"), cfg.input_size)
        weights = f"[download]({cfg.url})" if cfg.url else cfg.hf_hub_id or figures.get("weights", "none")
        top1 = f"{figures['top1']}" if "top1" in figures else "-"
        if "reevaluated" in figures:
            top1 += f" ({figures['reevaluated']})"
        lines.append(
            f"| `{name}` | {cfg.input_size[1]} x {cfg.input_size[2]} | {cost.parameters:,} "
            f"| {figures.get('parameters', '-')} | {cost.multiply_adds / 1e9:.3f} | {figures.get('gmacs', '-')} "
            f"| {top1} | {weights} |"
        )
    return "\n".join(lines) + "\n"


def readme_table(families: dict[str, dict]) -> str:
    """Markdown table of every published variant, in short."""
    lines = ["| model | parameters | GMACs | published top-1 | weights |", "|---|---|---|---|---|"]
    for family, data in families.items():
        for name, figures in data["variants"].items():
            cfg = get_pretrained_cfg(name)
            cost = count(timm.create_model(name, device="meta"), cfg.input_size)
            weights = "downloads" if cfg.url or cfg.hf_hub_id else figures.get("weights", "none")
            lines.append(
                f"| [`{name}`](model_cards/{family}.md) | {cost.parameters / 1e6:.1f} M "
                f"| {cost.multiply_adds / 1e9:.2f} | {figures.get('top1', '-')} "
                f"| {weights.replace(', see below', ', see its card')} |"
            )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if `--check` finds an outdated card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a card is not up to date")
    args = parser.parse_args(argv)
    families = {data.stem: json.loads(data.read_text()) for data in sorted(CARDS.glob("*.json"))}
    files = {CARDS / f"{family}.md": variants_table(data["variants"]) for family, data in families.items()}
    files[CARDS.parent / "README.md"] = readme_table(families)
    outdated = []
    for path, table in files.items():
        if not path.exists():
            print(f"there are figures for {path}, but no such file", file=sys.stderr)
            return 2
        text = path.read_text()
        new, found = _TABLE.subn(lambda m, table=table: m[1] + table + m[2], text)
        if not found:
            print(f"{path} has no place for the table: <!-- variants --> ... <!-- end -->", file=sys.stderr)
            return 2
        if new != text:
            outdated.append(path.name)
            if not args.check:
                write_text(path, new)
    print(f"{'outdated' if args.check else 'updated'}: {', '.join(outdated) or 'none'}")
    return int(args.check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
