"""Documents: links lead to files, names are names of the code, and pictures are what their script draws."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support import house

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FOLDERS = {source.folder for source in house.read_sources(ROOT)} | {"configs", "tests", "benchmarks", "assets", "docs"}
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def defined_names() -> set[str]:
    """Names of all classes, functions and methods in the sources."""
    nodes = [node for source in house.read_sources(ROOT) for node in ast.walk(source.tree)]
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in nodes if isinstance(node, kinds)}


def words(path: Path) -> list[str]:
    """Words that a page sets as code, without its blocks of code."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


@page
def test_links(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text())
    for file, anchor in links:
        if re.match(r"(method|task)/", file):
            continue  # made while the site is built, which checks these links
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name}: no file {file}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, f"{page.name}: {file} has no heading {anchor}"


@pytest.mark.parametrize("name", ["map.md", "glossary.md"])
def test_names(name: str) -> None:
    """Paths exist, and a word in camel case, with or without a method behind it, is defined in the sources."""
    defined, missing = defined_names(), []
    for word in words(ROOT / "docs" / name):
        if re.match(rf"({'|'.join(FOLDERS)})/", word):
            example = re.search("[A-Z]{3,}", word)  # methods/NAME.py
            missing += [] if example or (ROOT / word).exists() else [word]
        elif re.fullmatch(r"[A-Z]\w*[a-z]\w*(\.\w+)?", word):
            missing += [word] if not {*word.split(".")} <= defined | {"SSFClassification"} else []
    assert not missing, f"docs/{name} names what is not there: {', '.join(missing)}"


def test_glossary_is_in_order() -> None:
    entries = re.findall(r"^\*\*(.+?)\*\*: (.+)$", (ROOT / "docs/glossary.md").read_text(), flags=re.MULTILINE)
    names = [name for name, _ in entries]
    assert names == sorted(names, key=str.lower)
    assert len(names) > 30


def test_picture_of_the_map() -> None:
    script = runpy.run_path(str(ROOT / "assets/map/draw.py"))
    drawn = script["draw"]()
    assert (ROOT / "assets/map/map.svg").read_text() == drawn, "run python assets/map/draw.py"
    assert set(script["COLUMNS"]) < FOLDERS
