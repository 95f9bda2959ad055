"""The list of recipes, and the values of one."""

import pytest

from commands.lightning.recipes import recipe_files
from commands.recipes import main


def test_a_line_for_every_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main([])
    out = capsys.readouterr().out
    assert all(name in out for name in recipe_files())
    line = next(line for line in out.splitlines() if " vtab/ssf " in line)
    assert "SSF (arXiv:2210.08823)" in line
    assert " 19 " in line


def test_values_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--show", "vtab/gps", "--data.task", "kitti", "--model.lr", "0.5"])
    assert stop.value.code == 0
    rows = [[word.strip() for word in line.split("│")] for line in capsys.readouterr().out.splitlines() if "│" in line]
    found = {row[1]: row[2:] for row in rows if row[1]}
    assert found["data.resize"][0] == "direct"
    assert found["data.resize"][1].startswith("data/transforms_factory.py l.26-38")
    assert found["data.batch_size"][0] == "16"
    assert found["model.lr"][:2] == ["0.5", "command line or config file"]
    assert found["model.label_smoothing"][:2] == ["0.0", "default of Graft"]
    assert found["seed_everything"][:2] == ["0", "default of Graft"]
    assert "data.root" not in found


def test_options_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--model.lr", "0.5"])
    assert stop.value.code == 2
    assert "unknown arguments --model.lr 0.5; options of fit need --show NAME" in capsys.readouterr().err
