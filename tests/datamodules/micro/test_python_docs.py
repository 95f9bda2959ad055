"""Python's documentation as texts."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.instructions import InstructionDataset
from datamodules.micro import python_docs
from datamodules.micro.python_docs import MODULES, Docstring, in_body, split_of, unique
from datamodules.text_table import TextTable

SOURCE = '''
class Reader:
    """Reads lines from a file, one after the other, until its end."""
    def next(self):
        """Return the next line of the file, without the sign that ends it."""
    def _buffer(self):
        """A private function, which no user calls or wants to know about."""
    def short(self):
        """Too short."""
async def main():
    """Start everything that has to run, and wait until all of it has ended."""
'''


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "deep/python docs"
    python_docs.build(folder)
    return folder


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of each split."""
    return {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in folder.glob("*.jsonl")}


def test_docstrings_of_a_module() -> None:
    found = list(in_body(ast.parse(SOURCE), "files", "files.reading"))
    assert [(d.name, d.kind) for d in found] == [
        ("files.reading.Reader", "class"),
        ("files.reading.Reader.next", "function"),
        ("files.reading.main", "function"),
    ]


def test_a_text_appears_once() -> None:
    first, again = (
        Docstring("a.f", "a", "function", "Read a file."),
        Docstring("b.f", "b", "function", "Read a\n  FILE."),
    )
    assert unique([first, again, first._replace(text="Another text of one name.")]) == [first]


def test_both_forms(root: Path) -> None:
    """The datamodules read them, every class is there, and no text is in two splits."""
    instructions = InstructionDataset(str(root / "instructions"))
    counts = [len(instructions.samples(split) or []) for split in ("train", "val", "test")]  # type: ignore[arg-type]
    assert counts[0] > 1500
    assert min(counts[1:]) > 150
    modules = TextTable(str(root / "modules"))
    assert modules.class_names == sorted(MODULES)
    for folder in ("instructions", "modules"):
        texts = [row.get("output", row.get("text")) for part in rows(root / folder).values() for row in part]
        assert len(set(texts)) == len(texts)
        assert all(split_of(row["name"]) == split for split, part in rows(root / folder).items() for row in part)
    asked = {row["name"]: row["instruction"] for part in rows(root / "instructions").values() for row in part}
    assert asked["json.decoder.JSONDecoder"] == "What is json.decoder.JSONDecoder?"
    assert asked["textwrap.dedent"] == "What does textwrap.dedent do?"
    assert asked["lambda"] == "Explain the topic 'lambda' of Python."


def test_the_version_is_in_the_results(root: Path) -> None:
    info = TextTable(str(root / "modules")).description()["data_info"]
    assert info["rows"] == {split: len(part) for split, part in rows(root / "modules").items()}
    assert info["python"].startswith("3.")


def test_faults(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileExistsError, match="remove it, or name another folder"):
        python_docs.build(root)
    monkeypatch.setattr(python_docs, "standard_library", list)
    with pytest.raises(FileNotFoundError, match="has no source files of asyncio, email"):
        python_docs.build(tmp_path / "new")
    assert not (tmp_path / "new").exists()
