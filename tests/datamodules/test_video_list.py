"""Lists of videos."""

from pathlib import Path

import pytest

from datamodules.video_list import VideoList
from tests.support.videos import CLASSES, write_clips


def test_lists(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", {"train": 2, "test": 1})
    (tmp_path / "clips/other").mkdir()
    (tmp_path / "clips/other/train.txt").write_text("train/red/0 0\ntrain/blue/1 4\n")
    data = VideoList(root=str(tmp_path / "clips"))
    assert (data.class_names, data.num_classes) == ([*CLASSES], 3)
    assert data.samples("val") is None
    assert [len(data.samples(split) or ()) for split in ("train", "test")] == [6, 3]
    other = VideoList(root=str(tmp_path / "clips"), lists="other")
    assert other.class_names == ["0", "1", "2", "3", "4"]
    assert (other.samples("train") or [])[1].target == 4


def test_faults(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", {"train": 1})
    (tmp_path / "clips/classes.txt").write_text("red\nred")
    with pytest.raises(ValueError, match=r"classes.txt: expected the name of a class in each line"):
        VideoList(root=str(tmp_path / "clips")).num_classes  # noqa: B018
    (tmp_path / "clips/train.txt").write_text("train/none/0 0\n")
    with pytest.raises(FileNotFoundError, match=r"train\.txt names train/none/0, but there is no such file"):
        VideoList(root=str(tmp_path / "clips")).samples("train")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        VideoList(root=str(tmp_path / "none"))
