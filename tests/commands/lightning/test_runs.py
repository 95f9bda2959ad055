"""Runs that other commands start: once, resumed, with one line for a failure."""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commands.lightning import runs
from commands.lightning.cli import GraftCLI
from commands.lightning.errors import Failed
from commands.lightning.runs import execute, exit_on_sigterm, finished, last_error, newest, run_once
from tests.conftest import ROOT


def leave(root: Path, **result: Any) -> Path:
    """A run folder with a result."""
    folder = root / "X" / "data" / "id"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines that ``run_once`` runs; each leaves a result."""
    begun: list[list[str]] = []

    def pretend(args: list[str], log: Path | None, own_process: bool) -> None:
        begun.append(args)
        leave(Path(args[args.index("--run_root") + 1]), **{"test/acc1": 0.5})

    monkeypatch.setattr(runs, "execute", pretend)
    return begun


def test_a_finished_run_is_not_repeated(executed: list[list[str]], tmp_path: Path) -> None:
    for _ in range(2):
        result = run_once(["fit", "--method", "ssf"], tmp_path)
    assert executed == [["fit", "--method", "ssf", "--run_root", str(tmp_path)]]
    assert result == {"test/acc1": 0.5, "folder": str(tmp_path / "X/data/id")}


def test_an_untested_run_is_not_finished(executed: list[list[str]], tmp_path: Path) -> None:
    leave(tmp_path, **{"val/acc1": 0.5})
    assert finished(tmp_path, tested=True) is None
    run_once(["fit"], tmp_path)
    assert not executed
    run_once(["fit", "--test_after_fit", "true"], tmp_path)
    assert len(executed) == 1


@pytest.mark.parametrize("resume", [True, False])
def test_an_interrupted_fit(resume: bool, executed: list[list[str]], tmp_path: Path) -> None:
    checkpoint = tmp_path / "X/data/id/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    run_once(["fit"], tmp_path, resume=resume)
    assert executed[0][1:-2] == (["--ckpt_path", str(checkpoint)] if resume else [])


def test_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runs, "execute", lambda *args: None)
    with pytest.raises(Failed, match=f"its run left no result in {tmp_path}"):
        run_once(["fit"], tmp_path)


def test_the_newest_file(tmp_path: Path) -> None:
    assert newest(tmp_path, "result.json") is None
    folder = leave(tmp_path)
    assert newest(tmp_path, "result.json") == folder / "result.json"


def test_a_failure_in_this_process(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log.txt"
    with pytest.raises(Failed, match=r"^ValueError: unknown method 'sff'; nearest: ssf.*, see .*log\.txt$") as failure:
        execute(["fit", "--method", "sff"], log, own_process=False)
    assert isinstance(failure.value.error, ValueError)
    assert "Traceback" in log.read_text()
    with pytest.raises(Failed, match="its options cannot be read, see") as failure:
        execute(["fit", "--method", "ssf", "--modl.lr=1"], log, own_process=False)
    assert failure.value.code == 2
    assert "modl.lr" in log.read_text()


def test_output_goes_to_the_log_and_loggers_come_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = []

    def run(args: list[str]) -> None:
        print("inside")
        levels.append(logging.getLogger("lightning.pytorch").level)

    monkeypatch.setattr(GraftCLI, "run", run)
    before = logging.getLogger("lightning.pytorch").level
    execute(["fit"], tmp_path / "log.txt", own_process=False)
    assert (tmp_path / "log.txt").read_text() == "inside\n"
    assert levels == [logging.WARNING]
    assert logging.getLogger("lightning.pytorch").level == before
    execute(["fit"], None, own_process=False)
    assert capsys.readouterr().out == "inside\n"


def test_a_failure_in_a_process_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"^unknown method 'sff'; nearest: ssf.*, see .*log\.txt$") as failure:
        execute(["fit", "--method", "sff"], tmp_path / "log.txt", own_process=True)
    assert failure.value.code == 1


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    assert last_error(None) is None
    (tmp_path / "log").write_text("error: one\nother\nerror: two\nmore\n")
    assert last_error(tmp_path / "log") == "two"
    (tmp_path / "log").write_text("nothing")
    assert last_error(tmp_path / "log") is None


def test_sigterm_runs_what_stands_in_finally(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from commands.lightning.runs import exit_on_sigterm\n"
        "with exit_on_sigterm():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        print('cleaned')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "cleaned\n"
    assert done.returncode == 128 + signal.SIGTERM


def test_the_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with exit_on_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
