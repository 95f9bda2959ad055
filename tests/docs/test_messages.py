"""docs/messages.md: each message is what its command prints."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT
from train import main

PAGE = (ROOT / "docs/messages.md").read_text()
EXAMPLES = re.findall(r"^\$ python train\.py (.*)\n(error: .*)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize(("command", "message"), EXAMPLES, ids=lambda text: text[:40])
def test_message(command: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    words += [f"--run_root={tmp_path}", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    printed = capsys.readouterr().err
    assert stop.value.code in (1, 2)
    assert message.removesuffix("...") in printed


def test_all_examples_are_read() -> None:
    assert len(EXAMPLES) == PAGE.count("```\n$ ") > 8
