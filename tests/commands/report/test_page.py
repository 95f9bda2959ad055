"""The page: Markdown, HTML and CSV."""

import re
from pathlib import Path

import pytest

from commands.report.page import grid_of, number, table
from tests.support.reports import make, written


def test_other_numbers_of_training_images_are_marked(tmp_path: Path) -> None:
    for method in ("SSF", "LoRA"):
        make(tmp_path, method, "dtd", 0, 70.0)
    make(tmp_path, "GPS", "dtd", 0, 90.0, images={"train": 5000})
    text = written(tmp_path)
    assert "| GPS | A | 1 | 90.00 † |" in text
    assert "† trained on another number of images" in text


def test_data_without_a_table(tmp_path: Path) -> None:
    make(tmp_path, "SSF", "x", 0, 70.0, dataset="ImageDataset", data="some/pets|cats", data_task=None)
    text = written(tmp_path)
    assert "## ImageDataset" in text
    assert "| pets\\|cats |" in text
    assert "mean of groups" not in text


def test_the_page_holds_everything(tmp_path: Path) -> None:
    make(tmp_path, "SSF", "dtd", 0, 70.0)
    make(tmp_path, "<script>alert(1)</script>", "dtd", 1, 60.0)
    text = written(tmp_path)
    page = (tmp_path / "out/report.html").read_text()
    assert re.findall('src="([^"]{22})', page) == ["data:image/png;base64,"]
    assert "<script" not in page
    assert "http" not in page
    assert page.count("<table") == text.count("| --- |")
    assert (tmp_path / "out/VTAB.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_table() -> None:
    assert grid_of(["a", "b"], [["1", "x|y"]]) == "| a | b |\n| --- | ---: |\n| 1 | x\\|y |"


def test_csv_has_every_column() -> None:
    assert table([{"a": 1}, {"b": "x,y", "a": 2}]) == 'a,b\n1,\n2,"x,y"\n'


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0123456, "0.0123"), (99.94, "99.9"), (100.4, "100"), (1234567.0, "1,234,567")]
)
def test_costs_are_short(value: float | None, text: str) -> None:
    assert number(value) == text
