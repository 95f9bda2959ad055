"""What `train.py check_data` says about images with objects."""

import shutil
from pathlib import Path

import pytest

from tests.support.objects import read_json, write_json, write_objects
from train import main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_objects(tmp_path / "data", {"train": 4, "val": 2, "test": 2})
    return tmp_path / "data"


def test_whole_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check_data", "--data", "DetectionFolder", "--data.root", str(root)])
    text = " ".join(capsys.readouterr().out.split())
    assert "│ train │ 4 │ │ 8 │ 2 of 2 │ 0 │ 0 │ 40 x 36 │ │" in text
    assert text.endswith("all there")


def test_mistakes_and_notes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A box outside, crowds and a thin box, boxes alone, an unknown category, and a shared image."""
    content = read_json(root)
    entries = content["annotations"]
    entries[0]["bbox"][0] = 90
    entries[2]["iscrowd"] = entries[3]["iscrowd"] = 1
    entries[4]["bbox"][2] = 0
    write_json(root, "train", content)
    content = read_json(root, "val")
    content["annotations"][0]["category_id"] = 5
    write_json(root, "val", content)
    content = read_json(root, "test")
    del content["annotations"][0]["segmentation"]
    write_json(root, "test", content)
    shutil.copy(root / "images/train/0.png", root / "images/test/0.png")
    with pytest.raises(SystemExit) as stop:
        main(["check_data", "--data", "DetectionFolder", "--data.root", str(root)])
    assert stop.value.code == 1
    text = " ".join(capsys.readouterr().out.split())
    for line in (
        "train: 1 of 4 images cannot be used, first",
        "lies outside 48 x 32 pixels",
        "note: train: 2 of 6 boxes are crowds; left out",
        "note: train: 1 of 6 boxes are at most 1 pixel wide or high; left out",
        "note: train: 1 of 3 images have no object to learn from (1 have crowds alone); left out",
        "note: test: 1 of 2 images have objects without a shape: pass --model.head faster_rcnn",
        "val: ",
        "has the category 5; the file lists 3, 7",
        "train and test share 1 of 4 images",
    ):
        assert line in text
