"""Reader of COCO's JSON."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.coco_json import read_instances
from tests.support.objects import read_json, write_json, write_objects


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_objects(tmp_path / "data", {"train": 3})
    return tmp_path / "data"


def read(root: Path) -> Any:
    return read_instances(root / "annotations/train.json", root / "images/train")


def test_images_and_objects(root: Path) -> None:
    """Classes are in the order of their ids, so that class 1 is the category 3."""
    samples, categories = read(root)
    assert categories == ([3, 7], ["green", "red"])
    assert (len(samples), samples.image_id(1), samples.size(0)) == (3, 101, (32, 48))
    objects = samples.target(1)
    assert objects.labels.tolist() == [2, 1]
    first = read_json(root)["annotations"][2]
    x, y, width, height = first["bbox"]
    assert objects.boxes[0].tolist() == [x, y, x + width, y + height]
    assert objects.area[0] == first["area"]
    assert objects.shapes is not None
    with samples[1].image as image:
        assert image.size == (32, 40)
    assert samples.keep([2]).image_id(0) == 102
    assert samples.name(0).endswith("images/train/0.png")
    assert samples.stored(0) != samples.stored(1)


def test_boxes_alone(root: Path) -> None:
    """Without ``segmentation``, ``area`` and ``iscrowd``, as many tools write."""
    content = read_json(root)
    for entry in content["annotations"]:
        for key in ("segmentation", "area", "iscrowd"):
            del entry[key]
    write_json(root, "train", content)
    objects = read(root)[0].target(0)
    assert objects.shapes is None
    assert objects.area.tolist() == [0, 0]
    assert not objects.crowd.any()


def change(key: str, place: int, name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content[key][place].update({name: value})


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (change("annotations", 1, "category_id", 5), "annotation 1 has the category 5; the file lists 3, 7"),
        (change("annotations", 0, "image_id", 9), "annotation 0 is of the image 9, which the file does not list"),
        (change("annotations", 0, "bbox", [1, 2, 3]), r"has the box \[1, 2, 3\]; expected left, top, width and height"),
        (lambda content: content["images"].append(content["images"][0]), "4 images with 3 ids"),
        (change("images", 2, "file_name", "../x.png"), "lies outside"),
        (change("images", 2, "file_name", "x.png"), "names x.png, but there is no such file"),
        (change("categories", 0, "name", None), "category 0 of the list has no usable name"),
        (
            lambda content: content.pop("categories"),
            "expected an object with the lists images, annotations",
        ),
        (lambda content: content["images"].clear(), "lists no image"),
    ],
)
def test_mistakes(edit: Callable[[dict[str, Any]], Any], reason: str, root: Path) -> None:
    content = read_json(root)
    edit(content)
    write_json(root, "train", content)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        read(root)


def test_files_of_another_kind(root: Path) -> None:
    (root / "annotations/train.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read(root)
    with pytest.raises(FileNotFoundError, match=r"none\.json is missing"):
        read_instances(root / "annotations/none.json", root)
