"""The site builds without a warning and without a network, with a page for each method and task."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules import TASKS
from methods import METHODS
from tests.conftest import ROOT

# what a page would load by itself: scripts, styles, fonts and pictures of other hosts
LOADED = re.compile(
    r"""<(?:script|img|iframe)[^>]*\bsrc=["']?(?:https?:)?//|<link[^>]*rel=["']?stylesheet[^>]*https?://"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pages(site: Path) -> None:
    pages = {f"method/{name}.html" for name in METHODS} | {f"task/{name}.html" for name in TASKS}
    pages |= {"index.html", "choose.html", "messages.html", "notebooks/own_images.html"}
    missing = [page for page in pages if not (site / page).is_file()]
    assert not missing


def test_page_of_a_method(site: Path) -> None:
    text = (site / "method/ssf.html").read_text()
    assert "205,824" in text, "trained parameters on a ViT-B/16"
    assert "families of timm" in text
    assert "ssf_std" in text, "an option of its docstring"
    assert "class SSF(PEFTMethod)" in re.sub(r"<[^>]+>", "", text), "its code"


def test_tables_are_filled(site: Path) -> None:
    text = (site / "choose.html").read_text()
    assert "<!-- " not in re.sub(r"<!doctype.*?>", "", text.partition("<article")[2])
    assert len(re.findall(r'href="method/\w+\.html"', text.partition("<article")[2])) == len(METHODS)
    assert "74.2" in text, "mean of Convpass in OSU's files"


def test_nothing_is_loaded_from_a_network(site: Path) -> None:
    loading = [page.name for page in site.rglob("*.html") if LOADED.search(page.read_text())]
    styles = [style.name for style in site.rglob("*.css") if re.search(r"url\(['\"]?https?:", style.read_text())]
    assert not loading + styles
