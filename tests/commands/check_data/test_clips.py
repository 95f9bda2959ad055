"""What `train.py check_data` says about videos."""

import shutil
from pathlib import Path

import pytest

from tests.support.videos import write_clips
from train import main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_clips(tmp_path / "data", {"train": 2, "test": 1})
    return tmp_path / "data"


def check(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and all that was printed, in single spaces."""
    code = 0
    try:
        main(["check_data", "--data", "VideoList", "--data.root", str(root)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    streams = capsys.readouterr()
    return code, " ".join((streams.out + streams.err).split())


def test_whole_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = check(root, capsys)
    assert code == 0
    assert "│ train │ 6 │ │ 3 of 3 │ 3 to 3 │ 32 x 24 │ │" in text
    assert "note: train: 6 videos have fewer than 8 frames, first" in text
    assert text.endswith("all there")


def test_mistakes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class beyond the list, a video without frames, a damaged one, and training videos in the test split."""
    lines = (root / "train.txt").read_text()
    (root / "empty").mkdir()
    (root / "noise.mp4").write_bytes(b"noise" * 99)
    (root / "train.txt").write_text("empty 0\n" + lines.replace("train/red/0 2", "train/red/0 7") + "noise.mp4 1\n")
    shutil.rmtree(root / "test/red/0")
    shutil.copytree(root / "train/red/0", root / "test/red/0")
    code, text = check(root, capsys)
    assert code == 1
    assert "- train: 1 labels outside 0 to 2, first 7 of" in text
    assert "- train: 2 of 8 videos cannot be read, first" in text
    assert "empty (it has 0 frames; expected at least 1)" in text
    assert "- train and test share 1 of 6 videos" in text
    assert "error: 3 problems, listed above" in text


def test_missing_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train.txt").unlink()
    code, text = check(root, capsys)
    assert code == 1
    assert "train.txt is missing" in text
