"""The list of methods, and the table of the README."""

import pytest

from commands import methods as command
from commands.methods import BEGIN, END, markdown_table, paper, summary
from methods import METHODS, PEFTMethod
from methods.core.selective import Selective
from train import main


class Plain(PEFTMethod):
    """Nothing at all (Nobody, 2026, arXiv:2601.00001), in ``no`` way.

    More of it.
    """

    mergeable, unmergeable = False, "there is nothing"


class Stacked(Selective):
    """Chosen weights (arXiv:2601.00002)."""

    standalone = False


def test_rows() -> None:
    begin, _, line, *rows, end = markdown_table({"plain": Plain, "stacked": Stacked}).splitlines()
    assert (begin, end) == (BEGIN, END)
    assert set(line) == {"|", "-"}
    first, second = (f"[{number}](https://arxiv.org/abs/{number})" for number in ("2601.00001", "2601.00002"))
    assert rows == [
        f"| `plain` | Nothing at all (Nobody, 2026), in `no` way | no: there is nothing | no | {first} |",
        f"| `stacked` | Chosen weights | as the other | yes | {second} |",
    ]


def test_table_of_all_methods(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods", "--markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("`")[1] for line in lines[3:-1]] == list(METHODS)
    assert all(line.count(" | ") == 4 for line in lines[3:-1])
    assert all(line.count("(") == line.count(")") for line in lines)


def test_paper_of_the_file_or_of_the_class() -> None:
    assert paper(METHODS["ssf"]) == "[2210.08823](https://arxiv.org/abs/2210.08823)"
    assert paper(METHODS["full"]) == ""


def test_a_line_for_every_method(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: METHODS[name] for name in ("linear_probe", "gps", "velora", "dyt")}
    monkeypatch.setattr("methods.METHODS", few)
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
