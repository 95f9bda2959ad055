"""The README's table of methods is printed by a command."""

from commands.methods.listing import BEGIN, END, markdown_table
from methods import METHODS
from tests.conftest import ROOT


def test_table_of_methods() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    shown = text[text.index(BEGIN) : text.index(END) + len(END)]
    assert shown == markdown_table(METHODS).strip(), "print it with: python train.py methods --markdown"
