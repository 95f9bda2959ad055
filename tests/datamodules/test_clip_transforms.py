"""Transforms of clips."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode

from datamodules.clip_transforms import ClipRandAugment, JitteredCrop, covering, crops, training_transform
from tests.support.golden import Golden

BICUBIC = InterpolationMode.BICUBIC


def test_views_of_dyt(pytestconfig: pytest.Config) -> None:
    """Resized and cropped frames of its test views, up to the rounding of pixels to integers."""
    golden = Golden(Path(pytestconfig.getoption("--golden-dir")) / "video.safetensors")
    video = golden.tensors["video"].permute(0, 3, 1, 2)
    chosen = {"dense": [[0, 3, 6, 9], [5, 8, 11, 14], [10, 13, 16, 19]], "uniform": [[2, 7, 12, 16]]}
    for name, clips in chosen.items():
        count = {"dense": 1, "uniform": 3}[name]
        whole = [covering(video[clip], (16, 16), BICUBIC, antialias=False) for clip in clips]
        views = torch.stack([crop for clip in whole for crop in crops(clip, (16, 16), count)])
        expected = (golden.tensors[f"views.{name}"] + 1) * 127.5
        difference = views.permute(0, 2, 1, 3, 4).float() - expected.clamp(0, 255)
        assert difference.abs().max() < 0.51


@pytest.mark.parametrize(("shape", "new"), [((24, 32), (16, 21)), ((32, 24), (21, 16)), ((24, 24), (16, 16))])
def test_sizes(shape: tuple[int, int], new: tuple[int, int]) -> None:
    clip = torch.zeros(2, 3, *shape, dtype=torch.uint8)
    assert covering(clip, (16, 16), BICUBIC, antialias=True).shape[2:] == new
    assert covering(clip, (8, 16), BICUBIC, antialias=True).shape[3] == 16
    assert JitteredCrop((16, 16), BICUBIC, antialias=True)(clip).shape == (2, 3, 16, 16)


def test_one_change_for_all_frames() -> None:
    """Equal frames stay equal, and clips differ."""
    frame = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    clip = frame.repeat(3, 1, 1, 1)
    for crop in ("jitter", "rrc"):
        transform = training_transform(crop, True, True, (16, 16), BICUBIC, True)  # type: ignore[arg-type]
        results = []
        for seed in range(4):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            results.append(transform(clip))
            assert (results[-1] == results[-1][:1]).all()
            assert results[-1].shape == (3, 3, 16, 16)
        assert len({tuple(result.flatten().tolist()) for result in results}) == 4


def test_randaugment_mirrors_nothing() -> None:
    """A frame that is bright on the left stays so, whatever is drawn."""
    clip = torch.full((1, 3, 32, 32), 60, dtype=torch.uint8)
    clip[..., :10] = 200
    random.seed(0)
    np.random.seed(0)
    for _ in range(40):
        changed = ClipRandAugment()(clip).float()
        left, right = changed[..., 4:10].mean(), changed[..., -6:].mean()
        assert left != right or changed.std() == 0
    steps: Any = training_transform("rrc", True, False, (8, 8), BICUBIC, True)
    assert [type(step).__name__ for step in steps.transforms] == ["ClipRandAugment", "ResizedCrop"]
