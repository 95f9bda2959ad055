"""Every cell is run once, and failed ones again."""

import sys
from pathlib import Path
from typing import Any

import pytest

from commands.grid.queue import Queue
from tests.commands.grid.conftest import Fake, call, refused


def test_every_cell_is_run_once(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = ["--study", tmp_path, "--methods", "ssf,lora"]
    assert call(*study, "--seeds", "0,1", "--", "--data.root", "x") == 0
    cells = [f"{method}/s{seed}" for method in ("ssf", "lora") for seed in (0, 1)]
    assert fake.ran == [str(tmp_path / cell) for cell in cells]
    assert fake.apart == [False] * 4
    assert call(*study, "--seeds", "0,1", "--", "--data.root", "x") == 0
    assert len(fake.ran) == 4
    assert call(*study, "--seeds", "0,1,2", "--", "--data.root", "x") == 0, "more seeds join"
    assert fake.ran[4:] == [str(tmp_path / f"{method}/s2") for method in ("ssf", "lora")]
    assert "6 of 6 finished" in capsys.readouterr().out
    assert "holds ssf/s0 with other options" in refused(capsys, *study, "--", "--data.root", "y")
    assert len(fake.ran) == 6


def test_a_finished_run_of_a_killed_worker_counts(fake: Fake, tmp_path: Path) -> None:
    folder = tmp_path / "ssf/s0/X/data/id"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"test/acc1": 0.7}')
    assert call("--study", tmp_path, "--methods", "ssf", "--seeds", "0,1", "--") == 0
    assert fake.ran == [str(tmp_path / "ssf/s1")]
    assert sorted(trial.value for _, trial in Queue(tmp_path).trials("COMPLETE")) == [0.5, 0.7]


def test_without_optuna(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "grid needs optuna: pip install optuna" in refused(capsys, "--study", tmp_path, "--methods", "ssf")


def test_failed_cells_are_tried_again_and_not_forever(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failures = {"ssf": 2, "lora": 9}
    study = ["--study", tmp_path, "--methods", "ssf,lora,bitfit", "--retries", 2]
    assert call(*study) == 1
    tries = [Path(root).parent.name for root in fake.ran]
    assert [tries.count(method) for method in ("ssf", "lora", "bitfit")] == [3, 3, 1]
    assert all(apart for root, apart in zip(fake.ran[3:], fake.apart[3:], strict=True)), "in a process of its own"
    out = capsys.readouterr().out
    assert "missing: lora/s0: as told" in out
    assert "2 of 3 finished" in out
    assert "lora, its data, seed 0" in (tmp_path / "report/report.md").read_text()
    fake.failures = {}
    assert call(*study) == 0, "the same command tries again what failed"
    assert [Path(root).parent.name for root in fake.ran[7:]] == ["lora"]


def test_stopping_costs_no_try(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("commands.lightning.runs.execute", stop)
    with pytest.raises(KeyboardInterrupt):
        call("--study", tmp_path, "--methods", "ssf", "--retries", 0)
    monkeypatch.setattr("commands.lightning.runs.execute", fake)
    assert not list((tmp_path / "alive").glob("grid*"))
    assert call("--study", tmp_path) == 0
    assert len(fake.ran) == 1


def test_what_a_failing_run_leaves(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of its own: the message is told, and the log has the traceback."""
    bad = [*options, "--model.pretrained", "nothing.pth"]
    assert call("--study", tmp_path, "--methods", "ssf", "--retries", 0, "--", *bad) == 1
    assert "'nothing.pth': no such file" in capsys.readouterr().out
    assert "Traceback" in (tmp_path / "ssf/s0/log.txt").read_text()
