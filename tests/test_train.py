"""The overview of train.py, its dispatch and the boundary of errors."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest

import commands
from commands.lightning.cli import GraftCLI
from tests.conftest import ROOT
from tests.support.command_line import Answer, answer_of
from train import LIGHTNING, overview


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """``call("fit", "--method", "ssf")``: run a command line in this process."""
    return partial(answer_of, capsys)


def test_help_in_a_process_of_its_own() -> None:
    answer = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0
    assert not answer.stderr
    for command in (*LIGHTNING, "grid", "merge", "methods", "prepare"):
        assert f"\n  {command} " in answer.stdout, command


def test_no_arguments_give_the_overview(call: Callable[..., Answer]) -> None:
    assert call().out == call("-h").out == call("--help").out


def test_threads_spin_for_a_short_time(call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    call("--help")
    assert os.environ["GOMP_SPINCOUNT"] == "7", "the user's own value stays"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    call("--help")
    assert os.environ["GOMP_SPINCOUNT"] == "20000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    call("--help")
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize("command", [*LIGHTNING, "grid", "merge", "methods", "prepare"])
def test_help_of_a_command(command: str, call: Callable[..., Answer]) -> None:
    answer = call(command, "--help")
    assert answer.code == 0
    assert "usage" in answer.out


def test_unknown_command(call: Callable[..., Answer]) -> None:
    answer = call("fitt")
    assert answer.code == 2
    assert "unknown command 'fitt'; expected fit, score, validate, test, predict" in answer.err


def test_traceback_on_request(call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown method"):
        call("fit", "--method", "sff")


def test_a_defect_shows_its_traceback(call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GraftCLI, "run", lambda args: json.loads("a library's ValueError"))
    with pytest.raises(json.JSONDecodeError):
        call("fit")


def test_help_of_every_command_is_the_docstring_of_its_file() -> None:
    lines = overview().splitlines()
    for name in commands.NAMES:
        module = importlib.import_module(f"commands.{name}")
        first = str(module.__doc__).partition("\n")[0].rstrip(".")
        assert f"  {name:<12} {first}" in lines
    assert not any(line.startswith("  lightning") for line in lines), "its subcommands are listed by their own names"


def test_overview_imports_no_command() -> None:
    code = "import sys, train; train.overview(); print(sorted({'torch', 'lightning', 'methods'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr
