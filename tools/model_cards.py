"""Fill the generated tables of the documents from the registry, the recipes and the figures beside each model card.

    python tools/model_cards.py [--check] [--only families recipes]

A table stands between `<!-- NAME -->` and `<!-- end -->`: `variants` in each card and in the README, `families` in the
README, `recipes` in configs/classification/README.md. Title, paper and quoted figures of a family, and the keys other
than `model` in which its recipes differ, are in model_cards/<family>.json. `--check` changes nothing and fails if a
table is not up to date.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import timm
from timm.models import PretrainedCfg, get_pretrained_cfg

from visionssm.analysis.flops import Cost, count
from visionssm.files import write_text
from visionssm.models import list_kinds

ROOT = Path(__file__).resolve().parent.parent
CARDS, RECIPES = ROOT / "model_cards", ROOT / "configs" / "classification"


def cfg_of(name: str) -> PretrainedCfg:
    """The published configuration."""
    cfg = get_pretrained_cfg(name, allow_unregistered=False)
    assert cfg is not None
    return cfg


@cache
def cost_of(name: str) -> Cost:
    """Parameters and multiply-adds at the published size."""
    return count(timm.create_model(name, device="meta"), cfg_of(name).input_size)


def variants_table(variants: dict[str, dict]) -> list[str]:
    """Table of a family: what is measured, what is quoted."""
    lines = [
        "| model | input | parameters | published | GMACs | published | published top-1 | weights |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in variants.items():
        cfg, cost = cfg_of(name), cost_of(name)
        weights = f"[download]({cfg.url})" if cfg.url else cfg.hf_hub_id or figures.get("weights", "none")
        top1 = f"{figures['top1']}" if "top1" in figures else "-"
        if "reevaluated" in figures:
            top1 += f" ({figures['reevaluated']})"
        lines.append(
            f"| `{name}` | {cfg.input_size[1]} x {cfg.input_size[2]} | {cost.parameters:,} "
            f"| {figures.get('parameters', '-')} | {cost.multiply_adds / 1e9:.3f} | {figures.get('gmacs', '-')} "
            f"| {top1} | {weights} |"
        )
    return lines


def short_variants_table(families: dict[str, dict]) -> list[str]:
    """Table of every published variant, in short."""
    lines = ["| model | parameters | GMACs | published top-1 | weights |", "|---|---|---|---|---|"]
    for family, data in families.items():
        for name, figures in data["variants"].items():
            cfg, cost = cfg_of(name), cost_of(name)
            weights = "downloads" if cfg.url or cfg.hf_hub_id else figures.get("weights", "none")
            lines.append(
                f"| [`{name}`](model_cards/{family}.md) | {cost.parameters / 1e6:.1f} M "
                f"| {cost.multiply_adds / 1e9:.2f} | {figures.get('top1', '-')} "
                f"| {weights.replace(', see below', ', see its card')} |"
            )
    return lines


def families_table(families: dict[str, dict]) -> list[str]:
    """Table of the families: names, paper, card."""
    lines = ["| family | names | paper | card |", "|---|---|---|---|"]
    for family, data in families.items():
        kinds = [names for (file, _), names in list_kinds().items() if file == family]
        patterns = ", ".join(f"`{os.path.commonprefix(names).rpartition('_')[0]}_*`" for names in kinds)
        paper = f"[arXiv:{data['arxiv']}](https://arxiv.org/abs/{data['arxiv']})"
        lines.append(f"| {data['title']} | {patterns} | {paper} | [{family}](model_cards/{family}.md) |")
    return lines


def recipes_table(families: dict[str, dict]) -> list[str]:
    """Table of the folders of recipes on ImageNet-1K."""
    counts = {family: len(list((RECIPES / family).glob("*.yaml"))) for family in families}
    keys = {family: ["model", *data.get("recipes_differ_in", "").split()] for family, data in families.items()}
    rows = [
        f"| `{family}` | {data['title']} | {counts[family]} | {' '.join(f'`{key}`' for key in keys[family])} |"
        for family, data in families.items()
    ]
    return ["| folder | family | recipes | which differ in |", "|---|---|---|---|", *rows]


def read_families() -> dict[str, dict]:
    """The json files beside the cards, by family.

    Raises:
        ValueError: a family of the registry has no file, or the variants in it are not those of the registry.
    """
    registered: dict[str, list[str]] = {}
    for (family, _), names in list_kinds().items():
        registered.setdefault(family, []).extend(names)
    families = {path.stem: json.loads(path.read_text()) for path in sorted(CARDS.glob("*.json"))}
    if families.keys() != registered.keys():
        raise ValueError(f"model_cards has json files of {sorted(families)}; expected {sorted(registered)}")
    for family, names in registered.items():
        if differing := set(names) ^ set(families[family]["variants"]):
            raise ValueError(f"model_cards/{family}.json and the registry disagree about {sorted(differing)}")
    return families


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if `--check` finds an outdated table, 2 if a table cannot be made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a table is not up to date")
    names = ("variants", "families", "recipes")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="tables to fill")
    args = parser.parse_args(argv)
    try:
        families = read_families()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    readme = ROOT / "README.md"
    tables: list[tuple[Path, str, Callable[[], list[str]]]] = [
        *((CARDS / f"{f}.md", "variants", lambda f=f: variants_table(families[f]["variants"])) for f in families),
        (readme, "families", lambda: families_table(families)),
        (readme, "variants", lambda: short_variants_table(families)),
        (RECIPES / "README.md", "recipes", lambda: recipes_table(families)),
    ]
    outdated = []
    for path, name, make in tables:
        if name not in args.only:
            continue
        shown = path.relative_to(ROOT).as_posix()
        if not path.exists():
            print(f"there are figures for {shown}, but no such file", file=sys.stderr)
            return 2
        text = path.read_text()
        found = re.search(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", text, re.DOTALL)
        if not found:
            print(f"{shown} has no place for the table: <!-- {name} --> ... <!-- end -->", file=sys.stderr)
            return 2
        table = "\n".join([*make(), ""])
        if found[0] != table:
            outdated.append(f"{name} in {shown}")
            if not args.check:
                write_text(path, text[: found.start()] + table + text[found.end() :])
    print(f"{'outdated' if args.check else 'updated'}: {', '.join(outdated) or 'none'}")
    return int(args.check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
