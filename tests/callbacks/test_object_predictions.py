"""Boxes and masks of predictions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faster_coco_eval.core import mask
from lightning import Trainer
from PIL import Image

from callbacks.object_predictions import ObjectPredictions, drawn, results
from datamodules.detection_folder import DetectionFolder
from lightning_modules.detection import Detection
from methods import METHODS, compose
from tests.lightning_modules.test_detection import OPTIONS
from tests.support.objects import write_objects


def test_one_file_and_pictures(
    trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """COCO's form of results, with the numbers of images and categories of the annotations."""
    write_objects(tmp_path / "data", {"train": 2, "test": 3})
    data = DetectionFolder(str(tmp_path / "data"), short_sides=[32], long_side=48, batch_size=2, num_workers=0)
    task: Any = compose(METHODS["linear_probe"], task=Detection)(**OPTIONS)
    trainer(callbacks=[ObjectPredictions()]).predict(task, datamodule=data, return_predictions=False)
    entries = json.loads((tmp_path / "predictions.json").read_text())
    assert f"{len(entries)} objects in " in capsys.readouterr().out
    assert {entry["image_id"] for entry in entries} == {100, 101, 102}
    assert {entry["category_id"] for entry in entries} <= {3, 7}
    sizes = {100: [32, 48], 101: [40, 32], 102: [32, 48]}
    for entry in entries:
        assert entry["segmentation"]["size"] == sizes[entry["image_id"]]
        assert len(entry["bbox"]) == 4
    with Image.open(tmp_path / "pictures/1.jpg") as picture:
        assert picture.size == (320, 400)


def test_entries() -> None:
    shape = torch.zeros(1, 20, 30, dtype=torch.bool)
    shape[0, 2:6, 3:10] = True
    found = {
        "boxes": torch.tensor([[3.0, 2.0, 10.0, 6.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.75]),
    }
    entry = results(found | {"masks": shape}, "a.png", [3, 7])[0]
    decoded = mask.decode(entry["segmentation"] | {"counts": entry["segmentation"]["counts"].encode()})
    assert torch.equal(torch.from_numpy(decoded.copy()).bool().view(20, 30), shape[0])
    assert {k: v for k, v in entry.items() if k != "segmentation"} == {
        "image_id": "a.png",
        "category_id": 7,
        "bbox": [3, 2, 7, 4],
        "score": 0.75,
    }
    assert results({name: value[:0] for name, value in found.items()}, 0, [3, 7]) == []


def test_drawing() -> None:
    """A small image is enlarged; its boxes and masks have the colour of the class."""
    pixels = torch.zeros(3, 32, 40, dtype=torch.uint8)
    shape = torch.zeros(1, 32, 40, dtype=torch.bool)
    shape[0, 8:24, 8:24] = True
    truth = {"boxes": torch.tensor([[8.0, 8.0, 24.0, 24.0]]), "labels": torch.tensor([1]), "masks": shape}
    picture = drawn(pixels, truth, ["ground"])
    assert picture.shape == (3, 320, 400)
    assert picture[:, 80, 160].tolist() == [128, 0, 0]  # the box
    assert picture[:, 160, 160].tolist() == [64, 0, 0]  # half of the colour over black
    assert not picture[:, 300, 300].any()
    nothing = {name: value[:0] for name, value in truth.items()}
    assert torch.equal(drawn(torch.zeros(3, 400, 400, dtype=torch.uint8), nothing, []), torch.zeros(3, 400, 400).byte())
