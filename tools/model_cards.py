"""Fill the generated tables of the model cards from the registry and from the published figures beside each card.

    python tools/model_cards.py [--check]

A table stands between `<!-- variants -->` and `<!-- end -->` in model_cards/<family>.md; the figures quoted in it are
in model_cards/<family>.json. `--check` changes nothing and fails if a card is not up to date.
"""
import argparse
import json
import os
import re
import sys
from pathlib import Path

import timm
from timm.models import get_pretrained_cfg

import visionssm  # noqa: F401
from visionssm.analysis.flops import count

CARDS = Path(__file__).resolve().parent.parent / "model_cards"
_TABLE = re.compile(r"(<!-- variants -->\n).*?(<!-- end -->)", re.DOTALL)


def variants_table(variants: dict[str, dict]) -> str:
    """Markdown table of a family: what is measured, what is quoted."""
    lines = ["| model | input | parameters | published | GMACs | published | published top-1 | weights |",
             "|---|---|---|---|---|---|---|---|"]
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
            f"| {top1} | {weights} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if `--check` finds an outdated card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a card is not up to date")
    args = parser.parse_args(argv)
    outdated = []
    for data in sorted(CARDS.glob("*.json")):
        card = data.with_suffix(".md")
        if not card.exists():
            print(f"{data} has no card {card}", file=sys.stderr)
            return 2
        table = variants_table(json.loads(data.read_text())["variants"])
        text = card.read_text()
        new, found = _TABLE.subn(lambda m, table=table: m[1] + table + m[2], text)
        if not found:
            print(f"{card} has no place for the table: <!-- variants --> ... <!-- end -->", file=sys.stderr)
            return 2
        if new != text:
            outdated.append(card.name)
            if not args.check:
                temporary = card.with_suffix(".tmp")
                with open(temporary, "w") as file:
                    file.write(new)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(card)
    print(f"{'outdated' if args.check else 'updated'}: {', '.join(outdated) or 'none'}")
    return int(args.check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
