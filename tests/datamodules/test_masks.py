"""Pairs of images and masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.masks import labels_of, paired
from tests.support.scenes import write_scenes

SUFFIXES = (".png", ".jpg")


def mask(values: list[list[int]], mode: str = "L") -> Image.Image:
    image = Image.fromarray(np.array(values, np.uint8))
    return image if mode == "L" else image.convert(mode)


def test_numbers_of_classes() -> None:
    assert labels_of(mask([[0, 2], [255, 1]]), 3, False).tolist() == [[[0, 2], [255, 1]]]
    assert labels_of(mask([[0, 2], [255, 1]]), 2, True).tolist() == [[[255, 1], [255, 0]]]
    palette = mask([[0, 2]])
    palette.putpalette([9] * 9)
    assert palette.mode == "P"
    assert labels_of(palette, 3, False).tolist() == [[[0, 2]]]
    wide = Image.fromarray(np.array([[0, 200]], np.uint16))
    assert labels_of(wide, 201, False).tolist() == [[[0, 200]]]
    assert labels_of(Image.fromarray(np.array([[True, False]])), 2, False).tolist() == [[[1, 0]]]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (mask([[0, 3]]), "its mask has the class 3, outside 0 to 2"),
        (mask([[255, 255]]), "its mask is empty"),
        (mask([[0, 1]], "RGB"), "its mask has the mode RGB; expected one number a pixel"),
        (mask([[0, 1]], "LA"), "the mode LA"),
    ],
)
def test_masks_without_labels(image: Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels_of(image, 3, False)


def test_pairs_by_name(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", {"train": 3})
    images, masks = tmp_path / "data/images/train", tmp_path / "data/masks/train"
    Image.open(images / "1.png").convert("RGB").save(images / "1.jpg")
    (images / "1.png").unlink()
    pairs = paired(images, masks, SUFFIXES)
    assert [Path(pairs.name(i)).name for i in range(3)] == ["0.png", "1.jpg", "2.png"]
    sample = pairs[1]
    with sample.image, sample.target:
        assert sample.image.size == sample.target.size == (32, 32)
    assert len(pairs.keep([2])) == 1
    before = pairs.stored(2)
    (masks / "2.png").write_bytes((masks / "0.png").read_bytes())
    assert pairs.stored(2) != before
    assert pairs.content(2) == (images / "2.png").read_bytes()


def test_missing_files(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", {"train": 3})
    images, masks = tmp_path / "data/images/train", tmp_path / "data/masks/train"
    (masks / "1.png").rename(masks / "7.png")
    with pytest.raises(FileNotFoundError, match=r"1 of 3 files have no mask of the same name .*first .*images.*1.png"):
        paired(images, masks, SUFFIXES)
    (images / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 files have no image of the same name .*first .*masks.*7.png"):
        paired(images, masks, SUFFIXES)
    (masks / "7.png").rename(masks / "0.jpg")
    with pytest.raises(ValueError, match="expected one file of a name"):
        paired(images, masks, SUFFIXES)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        paired(tmp_path / "none", masks, SUFFIXES)
    for folder in (images, masks):
        for file in folder.iterdir():
            file.unlink()
    with pytest.raises(FileNotFoundError, match="holds no images"):
        paired(images, masks, SUFFIXES)
