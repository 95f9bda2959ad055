"""The list of recipes."""

import pytest

from commands.lightning.recipes import recipe_files
from commands.recipes import recipes


def test_a_line_for_every_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    recipes()
    out = capsys.readouterr().out
    assert all(name in out for name in recipe_files())
    line = next(line for line in out.splitlines() if " vtab/ssf " in line)
    assert "SSF (arXiv:2210.08823)" in line
    assert " 19 " in line
