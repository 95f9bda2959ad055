"""Folders of images with COCO's JSON."""

import pickle
from pathlib import Path

import pytest

from datamodules.detection_folder import DetectionFolder
from tests.support.objects import read_json, write_json, write_objects


def test_splits(tmp_path: Path) -> None:
    """A split without a file is missing; a file is read once; workers get no annotations of whole splits."""
    write_objects(tmp_path / "data", {"train": 2, "test": 1})
    data = DetectionFolder(str(tmp_path / "data"))
    assert (data.class_names, data.category_ids, data.num_classes) == (["green", "red"], [3, 7], 2)
    assert data.samples("val") is None
    assert data.samples("train") is data.samples("train")
    assert pickle.loads(pickle.dumps(data)).found == {}


def test_names_of_folders(tmp_path: Path) -> None:
    write_objects(tmp_path / "data", {"first": 2, "second": 1})
    data = DetectionFolder(str(tmp_path / "data"), train_split="first", val_split="second")
    train, val = data.samples("train"), data.samples("val")
    assert train is not None
    assert val is not None
    assert (len(train), len(val)) == (2, 1)


def test_other_categories(tmp_path: Path) -> None:
    write_objects(tmp_path / "data", {"train": 2, "val": 1})
    content = read_json(tmp_path / "data", "val")
    content["categories"][0]["name"] = "pink"
    write_json(tmp_path / "data", "val", content)
    data = DetectionFolder(str(tmp_path / "data"))
    data.samples("train")
    with pytest.raises(ValueError, match="has other categories than the split train"):
        data.samples("val")
