"""Tables of images with objects."""

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from datamodules.detection_dataset import DetectionDataset


def image() -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 9, 9)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(root: Path, objects: list[Any], category: Any, name: str = "objects") -> None:
    """Write a training table, with ``objects`` of each image as an object of lists."""
    parts = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(category)}
    features = datasets.Features({"image": datasets.Image(), name: parts})
    rows = {"image": [image()] * len(objects), name: objects}
    root.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "train.parquet"))


def test_named_classes(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["cat", "dog"])
    rows = [{"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "category": [1, 0]}, {"bbox": [], "category": []}]
    write(tmp_path / "data", rows, label)
    data = DetectionDataset(str(tmp_path / "data"))
    samples: Any = data.samples("train")
    assert data.class_names == ["cat", "dog"]
    assert data.samples("val") is None
    found = samples.target(0)
    assert found.boxes.tolist() == [[1, 2, 4, 6], [5, 6, 12, 14]]
    assert found.labels.tolist() == [2, 1]
    assert found.shapes is None
    assert samples.target(1).boxes.shape == (0, 4)
    assert (samples.image_id(1), samples.name(1), len(samples.keep([0]))) == (1, "row 1", 1)
    with samples[0].image as picture:
        assert picture.size == (40, 30)


def test_plain_values_and_corners(tmp_path: Path) -> None:
    """Classes are the values in ascending order; ``xyxy`` has right and bottom in the place of width and height."""
    rows = [{"bbox": [[1, 2, 3, 4]], "category": [value]} for value in (10, 9)]
    write(tmp_path / "data", rows, datasets.Value("int64"))
    data = DetectionDataset(str(tmp_path / "data"), box_format="xyxy")
    samples: Any = data.samples("train")
    assert data.class_names == ["9", "10"]
    assert samples.target(0).labels.tolist() == [2]
    assert samples.target(0).boxes.tolist() == [[1, 2, 3, 4]]


def test_mistakes(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["cat", "dog"])
    rows = [{"bbox": [[1, 2, 3, 4]], "category": []}, {"bbox": [[1, 2, 3]], "category": [1]}]
    write(tmp_path / "counts", rows, label)
    samples: Any = DetectionDataset(str(tmp_path / "counts")).samples("train")
    for index in range(2):
        with pytest.raises(ValueError, match="expected a box of four numbers for each"):
            samples.target(index)
    write(tmp_path / "missing", [{"bbox": [[1, 2, 3, 4]], "category": [None]}], label)
    with pytest.raises(ValueError, match="an object has the class None; known are 2"):
        DetectionDataset(str(tmp_path / "missing")).samples("train").target(0)  # type: ignore[union-attr]
    write(tmp_path / "named", [{"bbox": [], "category": []}], label, name="things")
    with pytest.raises(ValueError, match="has no column 'objects': found image, things"):
        DetectionDataset(str(tmp_path / "named")).samples("train")
    with pytest.raises(ValueError, match="expected objects with bbox and category, found Image"):
        DetectionDataset(str(tmp_path / "named"), objects_column="image").samples("train")
    with pytest.raises(ValueError, match=r"data\.val_split='dev'"):
        DetectionDataset(str(tmp_path / "named"), val_split="dev").samples("train")
