"""grid: its options, and where the work goes."""

from pathlib import Path
from typing import Any

import pytest

from commands import grid
from commands.grid import OPTIONS, seeds, take_options


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        grid.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {flag}" in out for flag in OPTIONS)


def test_options_behind_the_dashes_are_those_of_fit() -> None:
    own, options = take_options(["--methods", "ssf,lora", "--seeds", "0,1,1", "--", "--data.root", "x", "--search"])
    assert (own.methods, own.seeds, own.search, own.tasks) == (["ssf", "lora"], [0, 1], None, [])
    assert options == ["--data.root", "x", "--search"]
    assert take_options(["--search"])[0].search == 0
    assert seeds("3,4") == [3, 4]


@pytest.mark.parametrize(("workers", "expected"), [(1, "work"), (3, "spread")])
def test_one_worker_is_this_process(
    workers: int, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []

    class Pretended:
        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def plan(self, *args: Any) -> None:
            done.append("plan")

        def work(self) -> None:
            done.append("work")

    monkeypatch.setattr(grid, "Queue", Pretended)
    monkeypatch.setattr(grid, "spread", lambda study, workers: done.append("spread"))
    monkeypatch.setattr(grid, "conclude", lambda queue: 0)
    with pytest.raises(SystemExit) as stop:
        grid.main(["--study", str(tmp_path), "--methods", "ssf", "--workers", str(workers)])
    assert stop.value.code == 0
    assert done == ["plan", expected]
