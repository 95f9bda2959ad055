"""The list of methods, and the tables that are committed."""

import pytest

from commands import methods as command
from commands.methods import summary
from commands.methods.cell import Outcome
from commands.methods.matrix import Cell
from methods import METHODS
from train import main


def test_table_of_all_methods(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods", "--markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("`")[1] for line in lines[3:-1]] == list(METHODS)
    assert all(line.count(" | ") == 5 for line in lines[3:-1])
    assert all(line.count("(") == line.count(")") for line in lines)


def test_a_line_for_every_method(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: METHODS[name] for name in ("linear_probe", "gps", "velora", "dyt")}
    monkeypatch.setattr("commands.methods.costs.METHODS", few)
    main(["methods", "--backbone", "vit_tiny_patch16_224.augreg_in21k", "--num_classes", "10"])
    out = capsys.readouterr().out
    for name, method in few.items():
        row = next(line for line in out.splitlines() if f" {name} " in line)
        assert summary(method)[:20] in row
    assert " 1,930 " in next(line for line in out.splitlines() if "linear_probe" in line)  # 192 x 10 + 10
    assert "chosen from data" in out
    assert "stacks on another" in out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "--markdown" in capsys.readouterr().out


def test_the_page_of_the_matrix(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [Cell("vgg", "VGG", "ssf", Outcome("merges"))]
    monkeypatch.setattr("commands.methods.matrix.outcomes", lambda: cells)
    main(["methods", "--matrix"])
    assert "| `vgg` | **m** |" in capsys.readouterr().out
