"""Picture of validation images with objects."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from callbacks.object_picture import ObjectPicture, draw
from datamodules.detection_folder import DetectionFolder
from lightning_modules.detection import Detection
from methods import METHODS, compose
from tests.lightning_modules.test_detection import OPTIONS
from tests.support.objects import write_objects


@pytest.mark.parametrize("count", [0, 2])
def test_picture_of_a_fit(count: int, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """A fit without validation images draws none."""
    write_objects(tmp_path / "data", {"train": 2} | ({"val": count} if count else {}))
    data = DetectionFolder(str(tmp_path / "data"), short_sides=[32], long_side=48, batch_size=2, num_workers=0)
    task = compose(METHODS["linear_probe"], task=Detection)(**OPTIONS)
    trainer(callbacks=[ObjectPicture()]).fit(task, datamodule=data)
    assert (tmp_path / "validation.png").exists() == bool(count)
    assert task.training


def test_columns(tmp_path: Path) -> None:
    """Truth above prediction, a column for each image."""
    red, blue = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    red[0], blue[2] = 200, 200
    draw([(red, blue)] * 2, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    upper, lower = pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :]
    assert (upper == (200, 0, 0)).all(-1).mean() > 0.5
    assert (lower == (0, 0, 200)).all(-1).mean() > 0.5
