"""Published sets of videos."""

from pathlib import Path

import pytest

from datamodules import K400, SSv2
from datamodules.published_clips import PublishedClips
from tests.support.videos import write_clips


class Three(PublishedClips):
    count = 3
    sizes = {"train": 6, "test": 3}  # noqa: RUF012


def test_validation_videos_are_the_test(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", {"train": 2, "val": 1})
    data = Three(root=str(tmp_path / "clips"))
    assert (data.samples("val"), data.kept_epoch) == (None, "last epoch")
    assert len(data.samples("test") or ()) == data.expected("test") == 3
    best = Three(root=str(tmp_path / "clips"), report_best_test=True)
    assert best.kept_epoch == "best test epoch"
    assert len(best.samples("val") or ()) == best.expected("val") == 3


def test_classes(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", {"train": 1})
    assert Three(root=str(tmp_path / "clips")).class_names == ["blue", "green", "red"]
    with pytest.raises(ValueError, match=r"classes.txt has 3 classes; expected 174"):
        SSv2(root=str(tmp_path / "clips")).num_classes  # noqa: B018
    (tmp_path / "clips/classes.txt").unlink()
    assert K400(root=str(tmp_path / "clips")).num_classes == 400
