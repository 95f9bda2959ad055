"""Command lines of the fault tests: the tiny fit of the command line tests, and answers that refuse."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from tests.commands.lightning.conftest import base, call, fitted, model
from tests.support.command_line import Answer, folders

__all__ = ["base", "call", "fitted", "model"]  # fixtures


class Refused(Protocol):
    """Runs a command line that must be refused."""

    def __call__(self, *args: object, code: int = 1, says: str | tuple[str, ...] = ()) -> str: ...


@pytest.fixture
def refused(call: Callable[..., Answer], tmp_path: Path) -> Refused:
    """``refused("fit", ..., says="lr")``: a message that holds the words, no traceback, no run that looks finished."""

    def run(*args: object, code: int = 1, says: str | tuple[str, ...] = ()) -> str:
        answer = call(*args, "--run_root", tmp_path / "refused")
        assert answer.code == code, answer
        assert "error: " in answer.err
        assert "Traceback" not in answer.err
        for words in (says,) if isinstance(says, str) else says:
            assert words in answer.err, answer.err[-2000:]
        assert not [folder for folder in folders(tmp_path / "refused") if (folder / "result.json").exists()]
        return answer.err

    return run


@pytest.fixture
def own_images(images: Path, tmp_path: Path) -> Path:
    """A copy of the tiny images that a test may change."""
    root = tmp_path / "own images"
    shutil.copytree(images, root)
    return root


@pytest.fixture
def tiny(base: list[str], model: list[str], own_images: Path) -> list[str]:
    """``fit`` of SSF on ``own_images``."""
    return ["fit", *model, *base, "--data.root", str(own_images)]
