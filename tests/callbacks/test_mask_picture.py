"""Picture of validation images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lightning import Trainer
from PIL import Image

from callbacks.mask_picture import MaskPicture, draw
from datamodules.palette import palette
from datamodules.segmentation_folder import SegmentationFolder
from lightning_modules.segmentation import Segmentation
from methods import METHODS, compose
from tests.lightning_modules.test_segmentation import OPTIONS
from tests.support.scenes import write_scenes


@pytest.mark.parametrize("count", [0, 2])
def test_picture_of_a_fit(count: int, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """A fit without validation images draws none."""
    write_scenes(tmp_path / "data", {"train": 2} | ({"val": count} if count else {}))
    data = SegmentationFolder(root=str(tmp_path / "data"), batch_size=2)
    task = compose(METHODS["linear_probe"], task=Segmentation)(**OPTIONS)
    trainer(callbacks=[MaskPicture()]).fit(task, datamodule=data)
    assert (tmp_path / "validation.png").exists() == bool(count)
    assert task.training


def test_columns(tmp_path: Path) -> None:
    """Every image is a column; the picture shows its pixels and the colours of the palette."""
    labels = np.zeros((16, 16), np.uint8)
    labels[:8] = 1
    rows = [(np.full((16, 16, 3), 7, np.uint8), labels, labels[::-1])] * 2
    draw(rows, ["ground", "sky"], palette(), tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    shares = {colour: (pixels == colour).all(1).mean() for colour in [(7, 7, 7), (128, 0, 0)]}
    assert all(share > 0.05 for share in shares.values()), shares
