"""Rows of text files of every kind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.text_rows import read_hub, read_part

ROWS = [{"text": "the cat", "label": "a"}, {"text": 'sat "on"\tthe, mat', "label": "b"}]


def parquet(file: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda file: file.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n"),
    "a.json": lambda file: file.write_text(json.dumps(ROWS, indent=2)),
    "b.json": lambda file: file.write_text("\n".join(map(json.dumps, ROWS))),
    "a.parquet": parquet,
    "a.csv": lambda file: file.write_text('text,label\nthe cat,a\n"sat ""on""\tthe, mat",b\n'),
    "a.tsv": lambda file: file.write_text('text\tlabel\nthe cat\ta\n"sat ""on""\tthe, mat"\tb\n'),
}


@pytest.mark.parametrize("name", WRITERS)
def test_kinds(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    part = read_part(tmp_path / name)
    assert part.columns == {"text": [row["text"] for row in ROWS], "label": ["a", "b"]}
    first = {"line": {"a.csv": 2, "a.tsv": 2}.get(name, 1), "row": 1}[part.word]
    assert list(part.numbers) == [first, first + 1]


def test_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\r\n\n  two \n")
    part = read_part(tmp_path / "a.txt")
    assert part.columns == {"text": ["one", "two"]}
    assert list(part.numbers) == [1, 3]


def test_quotes_that_are_text(tmp_path: Path) -> None:
    """GLUE's files have quotes without a partner."""
    (tmp_path / "a.tsv").write_text('5\the said "no\n3\tinches: 5"\n')
    part = read_part(tmp_path / "a.tsv", ["number", "text"], quoted=False)
    assert part.columns == {"number": ["5", "3"], "text": ['he said "no', 'inches: 5"']}
    assert list(part.numbers) == [1, 2]


def test_line_breaks_in_a_cell_and_long_cells(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "a.csv").write_text(f'text,label\n"one\ntwo",1\n{long},2\n')
    part = read_part(tmp_path / "a.csv")
    assert part.columns["text"] == ["one\ntwo", long]
    assert list(part.numbers) == [3, 4]


def test_column_of_some_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2, "b": 3}\n')
    assert read_part(tmp_path / "a.jsonl").columns == {"a": [1, 2], "b": [None, 3]}


MISTAKES = {
    "half a row": ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2 is no JSON"),
    "a list a line": ("a.jsonl", '{"text": "x"}\n3\n', r"a\.jsonl, line 2: found '3'; expected an object"),
    "half a list": ("a.json", '[{"text": "x"}', r"a\.json is no JSON"),
    "texts in a list": ("a.json", '["x"]', r"a\.json, row 1: found 'x'; expected an object"),
    "no rows": ("a.jsonl", "\n", r"a\.jsonl has no rows"),
    "no file": ("b.csv", None, r"b\.csv is missing"),
    "no parquet file": ("b.parquet", None, r"b\.parquet is missing"),
    "damaged parquet": ("a.parquet", "PAR1 no", r"a\.parquet is no readable parquet file"),
    "names alone": ("a.csv", "text,label\n", r"a\.csv has no rows"),
    "a cell more": ("a.csv", "text,label\na,b\na,b,c\n", r"a\.csv, line 3: 3 cells; expected 2"),
    "a name twice": ("a.csv", "text,text\na,b\n", r"a\.csv: expected each name of a column once"),
    "half a quote": ("a.csv", 'text,label\n"a"b,c\n', r"a\.csv, line 2: .*quotes must enclose whole cells"),
    "unknown kind": ("a.xml", "<x/>", r"a\.xml: unknown kind of file; expected \.jsonl, \.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, tmp_path: Path) -> None:
    name, content, message = MISTAKES[mistake]
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_part(tmp_path / name)


def test_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is no UTF-8 text"):
        read_part(tmp_path / "a.txt")


def test_hub_that_cannot_be_reached() -> None:
    with pytest.raises(FileNotFoundError, match=r"data.root='no/such': no such file or folder, and the hub did not"):
        read_hub("no/such", None)
    with pytest.raises(FileNotFoundError, match=r"data.root='../x': no such file or folder$"):
        read_hub("../x", None)
