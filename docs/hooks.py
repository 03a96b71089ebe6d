"""What the site is made of: the repository's own documents, and a page of reference for each part of the package.

Documents keep their places relative to each other, so that a link leads to the same page in the repository and on the
site. What links to code or data, which the site does not hold, becomes plain text.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "visionssm"
DOCUMENTS = (
    "*.md",
    "docs/**/*.md",
    "docs/**/*.png",
    "model_cards/*.md",
    "configs/**/*.md",
    "benchmarks/**/*.md",
    "reports/*.md",
)
# those that a stranger calls
PARTS = tuple("ops scans layers models segmentation restoration multitask anomaly analysis openmmlab".split())
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def documents() -> list[str]:
    """Paths of pages and pictures, relative to the repository."""
    return sorted({p.relative_to(ROOT).as_posix() for pattern in DOCUMENTS for p in ROOT.glob(pattern)})


def exports(package: Path) -> dict[str, str]:
    """What a package exports: name and full name where it is defined; a function may be called as its module is."""
    tree = ast.parse((package / "__init__.py").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            base = [package, *package.parents][node.level - 1]
            inner = base / node.module.replace(".", "/")
            deeper = exports(inner) if inner.is_dir() else {}
            prefix = ".".join([*base.relative_to(ROOT).parts, node.module])
            for alias in node.names:
                found[alias.asname or alias.name] = deeper.get(alias.name, f"{prefix}.{alias.name}")
    public = [
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
    ]
    return {name: found[name] for name in (public[0] if public else ())}


def reference(part: str) -> dict[str, str]:
    """Pages of a part: what its package exports, or its modules if it exports nothing; a page for each model file."""
    package = PACKAGE / part
    names = exports(package)
    modules = [f"visionssm.{part}.{p.stem}" for p in sorted(package.glob("*.py")) if not p.stem.startswith("_")]
    directives = [f"::: visionssm.{part}\n    options: {{members: false, show_root_heading: false}}\n"]
    pages = {}
    if part == "models":
        names = {name: full for name, full in names.items() if full.rpartition(".")[0] not in modules}
        pages = {f"reference/models/{name.rpartition('.')[2]}.md": f"::: {name}\n" for name in modules}
    elif not names:
        directives += [f"::: {name}\n" for name in modules]
    directives += [
        f"::: {full}\n    options: {{heading: visionssm.{part}.{n}, toc_label: {n}}}\n" for n, full in names.items()
    ]
    return {f"reference/{part}.md": "\n".join([f"# visionssm.{part}\n", *directives])} | pages


def on_config(config: MkDocsConfig) -> None:
    """The navigation."""
    pages = [path for path in documents() if path.endswith(".md")]

    def under(folder: str) -> list[str]:
        return [path for path in pages if path.startswith(folder)]

    config.nav = [
        {"Start": ["README.md", "MIGRATING.md", "CONTRIBUTING.md", "CHANGELOG.md"]},
        {"Guides": under("docs/") + under("configs/")},
        {"Models": under("model_cards/")},
        {"Reference": [path for part in PARTS for path in reference(part)]},
        {"Measured": under("benchmarks/") + under("reports/")},
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the repository's documents and the pages of reference in the place of docs_dir's files."""
    kept = [file for file in files if file.src_dir != config.docs_dir]
    kept += [File.generated(config, path, abs_src_path=str(ROOT / path)) for path in documents()]
    kept += [File.generated(config, path, content=text) for part in PARTS for path, text in reference(part).items()]
    return Files(kept)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to what is not on the site into their text."""

    def resolve(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target.split("#")[0]))
        outside = re.match(r"[a-z]+:|#", target) or files.get_file_from_path(path)
        return match[0] if outside else text

    return _LINK.sub(resolve, markdown)
