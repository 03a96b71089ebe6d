"""The documentation's site: builds strictly, without a network, and holds what the package exports."""

import ast
import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocstrings", reason="the site needs mkdocs: pip install 'visionssm[docs]'")

pytestmark = pytest.mark.xdist_group("site")  # built once
ROOT = Path(__file__).resolve().parents[1]
OFFLINE = """
import socket
def refuse(*_): raise RuntimeError("the build asked for the network")
socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-c", OFFLINE, "build", "--strict", "--quiet", "--site-dir", folder]
    environment = dict(os.environ, NO_MKDOCS_2_WARNING="1")
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_readers_fetch_nothing(site):
    for path in site.rglob("*.html"):
        tags = re.findall(
            r"<(?:script|img|iframe)[^>]*src=\"https?:[^>]*>|<link[^>]*stylesheet[^>]*>", path.read_text()
        )
        assert not [tag for tag in tags if "http" in tag], path


def test_reference_holds_every_export(site):
    for page in sorted((site / "reference").glob("*/index.html")):
        part, text = page.parent.name, page.read_text() + "".join(p.read_text() for p in page.parent.glob("*/*.html"))
        headings = html.unescape(re.sub("<[^>]*>", "", " ".join(re.findall(r"<h\d.*?</h\d>", text, re.DOTALL))))
        exported = re.search(r"__all__ = (\[.*?\])", (ROOT / "visionssm" / part / "__init__.py").read_text(), re.DOTALL)
        for name in ast.literal_eval(exported[1]) if exported else ():
            assert re.search(rf"\b{name}\b", headings), f"visionssm.{part}.{name} has no docstring"


def test_documents_lie_where_the_repository_has_them(site):
    for path in ("", "docs/scans/", "model_cards/vmamba/", "configs/classification/"):
        assert (site / path / "index.html").is_file(), path
    assert (site / "docs" / "scans" / "cross.png").is_file()
