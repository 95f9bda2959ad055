"""Checks of images with objects."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.coco_json import CocoSamples, read_instances
from datamodules.object_checks import upright_size, usable
from tests.support.objects import read_json, write_json, write_objects


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_objects(tmp_path / "data", {"train": 4, "val": 2})
    return tmp_path / "data"


def samples(root: Path, split: str = "train") -> CocoSamples:
    return read_instances(root / f"annotations/{split}.json", root / "images" / split)[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bbox": [60, 2, 9, 9]}, ("1 of 4 images cannot be read", "0.png", "lies outside 48 x 32 pixels")),
        ({"bbox": [6, 2, -9, 9]}, ("has a negative side",)),
        ({"segmentation": []}, ("objects without a shape", "--model.head faster_rcnn")),
    ],
)
def test_mistakes(changes: dict[str, Any], words: tuple[str, ...], root: Path) -> None:
    content = read_json(root)
    content["annotations"][0] |= changes
    write_json(root, "train", content)
    with pytest.raises(ValueError) as error:
        usable("train", samples(root), True, None)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(usable("train", samples(root), True, 0.25)) == 3


def test_notes_about_boxes_and_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Boxes that are cut or left out are counted; images without any are left out in training alone."""
    for split in ("train", "val"):
        content = read_json(root, split)
        entries = content["annotations"]
        entries[0]["bbox"][0] = 44  # beyond the 48 columns
        entries[1]["bbox"][2] = 0.5
        for entry in entries[2:4]:
            entry["iscrowd"] = 1
        write_json(root, split, content)
    assert len(usable("train", samples(root), True, None)) == 3
    printed = capsys.readouterr().out
    for line in (
        "train: 1 of 8 boxes reach beyond their image; cut at its border",
        "train: 1 of 8 boxes are at most 1 pixel wide or high; left out",
        "train: 2 of 8 boxes are crowds; left out",
        "train: 1 of 4 images have no object to learn from (1 have crowds alone); left out",
    ):
        assert line in printed
    assert len(usable("val", samples(root, "val"), True, None)) == 2
    assert "val: 1 of 2 images have no object to learn from" in capsys.readouterr().out


def test_no_object_at_all(root: Path) -> None:
    content = read_json(root)
    write_json(root, "train", content | {"annotations": [e | {"iscrowd": 1} for e in content["annotations"]]})
    with pytest.raises(ValueError, match="train: none of the 4 images has an object"):
        usable("train", samples(root), True, None)


def test_size_of_the_annotations(root: Path) -> None:
    """Images that were resized or turned after they were annotated are named."""
    Image.new("RGB", (24, 16)).save(root / "images/train/0.png")
    with pytest.raises(ValueError, match="24 x 16 pixels, and its annotations are for 48 x 32"):
        usable("train", samples(root), True, None)


def test_turned_images(root: Path) -> None:
    """Annotations are of the image as it is shown, which a camera may store turned."""
    turned = Image.new("RGB", (32, 48))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(root / "images/train/0.png", exif=exif)
    assert upright_size(samples(root), 0, decode=True) == (32, 48)
