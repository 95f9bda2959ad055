"""Masks of predictions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from callbacks.mask_predictions import MaskPredictions
from datamodules.palette import palette
from datamodules.segmentation_folder import SegmentationFolder
from lightning_modules.segmentation import Segmentation
from methods import METHODS, compose
from tests.lightning_modules.test_segmentation import OPTIONS
from tests.support.scenes import write_scenes


def test_one_mask_for_each_image(
    trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has the size of its file, and its numbers are the predicted classes."""
    write_scenes(tmp_path / "data", {"train": 2, "test": 3}, size=(24, 40))
    data, model = SegmentationFolder(root=str(tmp_path / "data")), compose(METHODS["linear_probe"], task=Segmentation)
    task: Any = model(**OPTIONS)
    torch.nn.init.normal_(task.decoder.classifier.weight)
    trainer(callbacks=[MaskPredictions()]).predict(task, datamodule=data, return_predictions=False)
    assert "3 masks in " in capsys.readouterr().out
    task.eval()
    for index in range(3):
        name = Path(data.splits["test"].samples.name(index)).stem
        with Image.open(tmp_path / f"masks/{name}.png") as mask, Image.open(tmp_path / f"overlays/{name}.jpg") as over:
            assert mask.mode == "P"
            assert mask.getpalette() == palette()
            assert mask.size == over.size == (40, 24)
            batch = data.on_after_batch_transfer(data.collate([data.splits["test"][index]]), 0)
            with torch.no_grad():
                expected = task.infer(batch).argmax(1)[0]
            assert np.array_equal(np.asarray(mask), expected.numpy())
