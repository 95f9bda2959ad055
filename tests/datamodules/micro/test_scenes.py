"""Micro-scenes."""

import hashlib

import numpy as np
import pytest

from datamodules.micro.scenes import COUNTS, SIZE, class_names, draw

HASH = "c594b80d56a5eb3a529f802097cef778346efce1ae3f342df501a1089463fb7c"


def test_same_on_every_machine() -> None:
    """Hash of pixels and masks of the first scenes of each split."""
    digest = hashlib.sha256()
    for split in COUNTS:
        for index in range(4):
            scene = draw(split, index)
            for part in (scene.image, scene.classes, scene.instances):
                digest.update(part.tobytes())
    assert digest.hexdigest() == HASH


@pytest.mark.parametrize("split", ["train", "val"])
def test_items(split: str) -> None:
    """Visible pixels of items do not overlap; boxes and both masks agree with them."""
    for index in range(20):
        scene = draw(split, index)
        assert 1 <= len(scene.items) <= 5
        assert sum(item.mask.astype(int) for item in scene.items).max() == 1
        for number, item in enumerate(scene.items, 1):
            assert item.mask.sum() > 20
            assert np.array_equal(scene.instances == number, item.mask)
            assert set(scene.classes[item.mask]) == {item.label}
            left, top, width, height = item.box
            inside = item.mask[top : top + height, left : left + width]
            assert inside.sum() == item.mask.sum()
            assert inside.any(0)[[0, -1]].all()
            assert inside.any(1)[[0, -1]].all()
        assert np.array_equal(scene.classes == 0, scene.instances == 0)


def test_splits_differ() -> None:
    scenes = [draw(split, index).image for split in COUNTS for index in range(3)]
    assert all(scene.shape == (SIZE, SIZE, 3) for scene in scenes)
    assert len({scene.tobytes() for scene in scenes}) == len(scenes)


def test_names() -> None:
    names = class_names()
    assert names[0] == "ground"
    assert (names[1], names[10], len(names)) == ("T-shirt/top", "Ankle boot", 11)


def test_all_classes_are_there() -> None:
    found = set[int]()
    for index in range(40):
        found |= {*draw("train", index).classes.flatten().tolist()}
    assert found == set(range(11))
