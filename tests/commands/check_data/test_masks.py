"""What `train.py check_data` says about images with masks."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.check_data.masks import check_masks
from datamodules.segmentation_folder import SegmentationFolder
from tests.support.scenes import write_scenes
from train import main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "data", {"train": 4, "val": 2, "test": 2}, size=(24, 40))
    return tmp_path / "data"


def test_whole_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check_data", "--data", "SegmentationFolder", "--data.root", str(root)])
    text = " ".join(capsys.readouterr().out.split())
    assert "│ train │ 4 │ │ 4 of 4 │ 0.0% │ 40 x 24 │ │" in text
    assert text.endswith("all there")


def test_mistakes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class beyond the list, a missing mask, and a training image in the test split."""
    Image.fromarray(np.full((24, 40), 9, np.uint8)).save(root / "masks/train/1.png")
    (root / "masks/val/1.png").unlink()
    shutil.copy(root / "images/train/0.png", root / "images/test/0.png")
    with pytest.raises(SystemExit) as stop:
        main(["check_data", "--data", "SegmentationFolder", "--data.root", str(root)])
    assert stop.value.code == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "train: 1 of 4 images cannot be used, first" in text
    assert "1.png (its mask has the class 9, outside 0 to 3" in text
    assert "val: 1 of 2 files have no mask of the same name" in text
    assert "train and test share 1 of 4 images" in text


def test_notes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "classes.txt").write_text("\n".join(["ground", "red", "green", "blue", "white"]))
    shutil.rmtree(root / "images/val")
    shutil.rmtree(root / "masks/val")
    _, wrong = check_masks(SegmentationFolder(root=str(root)))
    assert wrong == []
    assert "note: 1 of 5 classes have no training pixel" in capsys.readouterr().out
