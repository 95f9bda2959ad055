"""Command lines run in this process, and what they leave."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from train import main


class Answer(NamedTuple):
    """Of a command line."""

    code: int
    out: str
    err: str


def folders(root: Path) -> list[Path]:
    """Run folders, METHOD/DATA/ID, in the order of their names."""
    return sorted(root.glob("*/*/*"))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Content and time of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def printed(answer: Answer) -> dict[str, Any]:
    assert answer.code == 0, answer.err
    config: dict[str, Any] = yaml.safe_load(answer.out)
    return config


def answer_of(capsys: pytest.CaptureFixture[str], *args: object) -> Answer:
    """Run a command line in this process."""
    code = 0
    capsys.readouterr()
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return Answer(code, *capsys.readouterr())
