"""Columns of the list of methods, and the table of the README."""

from commands.methods.listing import BEGIN, END, markdown_table, paper
from lightning_modules import TASKS, Task
from methods import METHODS, PEFTMethod
from methods.core.selective import Selective


class Plain(PEFTMethod):
    """Nothing at all (Nobody, 2026, arXiv:2601.00001), in ``no`` way.

    More of it.
    """

    mergeable, unmergeable = False, "there is nothing"


class Stacked(Selective):
    """Chosen weights (arXiv:2601.00002)."""

    standalone = False

    @classmethod
    def refusal(cls, task: type[Task]) -> str:
        return "it cannot" if task.dense else ""


def test_rows() -> None:
    begin, _, line, *rows, end = markdown_table({"plain": Plain, "stacked": Stacked}).splitlines()
    assert (begin, end) == (BEGIN, END)
    assert set(line) == {"|", "-"}
    first, second = (f"[{number}](https://arxiv.org/abs/{number})" for number in ("2601.00001", "2601.00002"))
    dense = ", ".join(name for name, task in TASKS.items() if task.dense)
    assert rows == [
        f"| `plain` | Nothing at all (Nobody, 2026), in `no` way | all | no: there is nothing | no | {first} |",
        f"| `stacked` | Chosen weights | all but {dense} | as the other | yes | {second} |",
    ]


def test_paper_of_the_file_or_of_the_class() -> None:
    assert paper(METHODS["ssf"]) == "[2210.08823](https://arxiv.org/abs/2210.08823)"
    assert paper(METHODS["full"]) == ""
