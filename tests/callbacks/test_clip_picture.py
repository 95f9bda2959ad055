"""Picture of validation clips."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lightning import Trainer
from PIL import Image

from callbacks.clip_picture import ClipPicture, Strip, draw
from datamodules.video_list import VideoList
from lightning_modules.video_classification import VideoClassification
from methods import METHODS, compose
from tests.lightning_modules.test_video_classification import OPTIONS
from tests.support.videos import write_clips


@pytest.mark.parametrize("count", [0, 3])
def test_picture_of_a_fit(count: int, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """A fit without validation clips draws none."""
    write_clips(tmp_path / "data", {"train": 1} | ({"val": count} if count else {}))
    data = VideoList(root=str(tmp_path / "data"), batch_size=3, frames=2)
    task = compose(METHODS["linear_probe"], task=VideoClassification)(**OPTIONS)
    trainer(callbacks=[ClipPicture()]).fit(task, datamodule=data)
    assert (tmp_path / "validation.png").exists() == bool(count)
    assert task.training


def test_rows(tmp_path: Path) -> None:
    """Every clip is a row of its frames; a wrong prediction has another colour than a right one."""
    frames = np.full((3, 8, 8, 3), 7, np.uint8)
    draw([Strip(frames, 0, 0), Strip(frames[:2], 1, 0)], ["a", "b"], tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels == 7).all(-1).mean() > 0.2
    red = (pixels[..., 0] - pixels[..., 1] > 100).any(1)
    assert red.any()
    assert not red[: len(red) // 2].any()
