"""Folders of images and masks."""

from pathlib import Path

import pytest

from datamodules.segmentation_folder import SegmentationFolder
from tests.support.scenes import CLASSES, write_scenes


def test_splits_and_classes(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", {"train": 2, "test": 1})
    module = SegmentationFolder(root=str(tmp_path / "data"))
    assert (module.class_names, module.num_classes) == ([*CLASSES], 4)
    assert module.samples("val") is None
    assert not module.validates
    assert [len(module.samples(split)) for split in ("train", "test")] == [2, 1]  # type: ignore[arg-type]
    other = SegmentationFolder(root=str(tmp_path / "data"), val_split="test")
    assert len(other.samples("val") or ()) == 1


def test_missing_folders(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", {"val": 1})
    with pytest.raises(FileNotFoundError, match=r"images.train: no such folder"):
        SegmentationFolder(root=str(tmp_path / "data")).samples("train")
    with pytest.raises(FileNotFoundError, match=r"other\.txt is missing"):
        SegmentationFolder(root=str(tmp_path / "data"), classes="other.txt")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        SegmentationFolder(root=str(tmp_path / "none"))


@pytest.mark.parametrize("text", ["", "sky", "sky\n\nsea", "sky\nsea\nsky"])
def test_list_of_classes(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=r"classes.txt: expected the name of a class in each line"):
        SegmentationFolder(root=str(tmp_path))
