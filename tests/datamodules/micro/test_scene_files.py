"""Files of micro-scenes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.micro import scene_files
from datamodules.micro.scenes import draw
from datamodules.segmentation_folder import SegmentationFolder
from tests.support.pictures import INPUT


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scene_files, "COUNTS", {"train": 3, "val": 2, "test": 2})
    scene_files.build(tmp_path / "deep/scenes")
    return tmp_path / "deep/scenes"


def test_folder_of_segmentation(root: Path) -> None:
    """It reads the scenes as they were drawn."""
    data = SegmentationFolder(root=str(root), batch_size=2)
    data.configure(INPUT)
    assert len(data.class_names) == 11
    samples = data.samples("val")
    assert samples is not None
    image, labels = data.both(samples[1])
    assert np.array_equal(image.permute(1, 2, 0).numpy(), draw("val", 1).image)
    assert np.array_equal(labels[0].numpy(), draw("val", 1).classes)
    assert len(data.dataset("train", data.samples("train"))) == 3
    with Image.open(root / "masks/val/000001.png") as mask:
        assert mask.mode == "P"


def test_annotations_of_coco(root: Path) -> None:
    """Boxes, areas and run lengths are those of the instance masks."""
    content = json.loads((root / "annotations/test.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["000000.png", "000001.png"]
    assert [category["id"] for category in content["categories"]] == list(range(1, 11))
    assert len({one["id"] for one in content["annotations"]}) == len(content["annotations"])
    for image in range(2):
        instances = np.asarray(Image.open(root / f"instances/test/{image:06d}.png"))
        entries = [one for one in content["annotations"] if one["image_id"] == image]
        assert len(entries) == instances.max()
        for number, entry in enumerate(entries, 1):
            counts = entry["segmentation"]["counts"]
            values = np.repeat(np.arange(len(counts)) % 2, counts).reshape(64, 64, order="F")
            assert np.array_equal(values == 1, instances == number)
            assert entry["area"] == (instances == number).sum()
            left, top, width, height = entry["bbox"]
            assert (instances[top : top + height, left : left + width] == number).sum() == entry["area"]


def test_runs() -> None:
    assert scene_files.runs(np.array([[True, False], [True, True]])) == [0, 2, 1, 1]
    assert scene_files.runs(np.zeros((2, 2), bool)) == [4]


def test_existing_folder(root: Path) -> None:
    with pytest.raises(FileExistsError, match="remove it, or name another folder"):
        scene_files.build(root)
