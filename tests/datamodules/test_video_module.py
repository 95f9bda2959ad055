"""Items, views and checks of videos."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.image_dataset import ImageDataset
from datamodules.video_list import VideoList
from lightning_modules.classification import Classification
from lightning_modules.video_classification import VideoClassification
from tests.support.pictures import INPUT
from tests.support.videos import encoded, frames_of, write_clips


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_clips(tmp_path / "clips", {"train": 2, "test": 1})
    return tmp_path / "clips"


def module(root: Path, **options: Any) -> VideoList:
    data = VideoList(root=str(root), **{"frames": 2, "batch_size": 2} | options)
    data.configure(INPUT)
    return data


def test_shapes_of_items(root: Path) -> None:
    """A validation has one clip, a test all views; on the device frames are rows of one batch."""
    data = module(root, stride=1, test_views=2, test_crops=3)
    samples = data.samples("test")
    assert samples is not None
    assert [f(samples[0])[0].shape[0] for f in (data.train_item, data.item, data.test_item)] == [2, 2, 12]
    test = data.dataset("test", samples)
    batch = data.on_device(data.collate([test[0], test[1]]))
    assert batch.inputs.shape == (24, 3, 16, 16)
    assert (batch.size, batch.targets.tolist()) == (2, [0, 1])
    middle = data.on_device(data.collate([data.item(samples[0])])).inputs
    # the view in the middle of both: frames 0 and 1, and the crop in the middle
    assert torch.equal(batch.inputs[2:4], middle)
    assert data.description()["test_views"] == 6


@pytest.mark.parametrize(("crop", "flip"), [("none", False), ("jitter", True), ("rrc", False)])
def test_training_clips(root: Path, crop: Any, flip: bool) -> None:
    data = module(root, train_crop=crop, flip=flip, randaugment=crop == "rrc")
    samples = data.samples("train")
    assert samples is not None
    torch.manual_seed(0)
    found = [data.train_item(samples[4])[0] for _ in range(6)]
    assert all(clip.shape == (2, 3, 16, 16) and clip.dtype == torch.uint8 for clip in found)
    # each of two frames is one of two, and nothing else is random
    assert (len({tuple(clip.flatten().tolist()) for clip in found}) > 4) == (crop != "none")
    assert data.varies() == ["data.frames=2"]


def test_unreadable_videos(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No frames, too few frames and no video are named; ``on_corrupt`` leaves out a share."""
    lines = (root / "train.txt").read_text()
    (root / "empty").mkdir()
    (root / "noise.mp4").write_bytes(b"noise" * 99)
    (root / "film.mp4").write_bytes(encoded(frames_of(0, 4)))
    (root / "train.txt").write_text("empty 0\n" + lines + "noise.mp4 1\nfilm.mp4 1\n")
    data = module(root)
    with pytest.raises(ValueError, match=r"train: 2 of 9 videos cannot be read, first \S+empty \(it has 0 frames; exp"):
        data.dataset("train", data.samples("train"))
    data = module(root, on_corrupt="skip", max_corrupt=0.1)
    with pytest.raises(ValueError, match=r"more than --data.max_corrupt 10% of the split"):
        data.dataset("train", data.samples("train"))
    data = module(root, on_corrupt="skip", max_corrupt=0.3)
    assert len(data.dataset("train", data.samples("train"))) == 7
    assert "2 of 9 videos cannot be read" in capsys.readouterr().out


def test_short_videos(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They repeat frames and are named, or they are refused by ``min_frames``."""
    data = module(root, frames=5)
    items = data.dataset("train", data.samples("train"))
    assert items[0][0].shape[0] == 5
    assert "note: train: 6 of 6 videos have fewer than 5 frames and repeat some, first" in capsys.readouterr().out
    with pytest.raises(ValueError, match="it has 3 frames; expected at least 4"):
        module(root, min_frames=4).dataset("train", data.samples("train"))


def test_frame_that_breaks_later(root: Path) -> None:
    """An error of an item names the video."""
    data = module(root)
    items = data.dataset("train", data.samples("train"))
    for frame in (root / "train/blue/0").iterdir():
        frame.write_bytes(b"")
    with pytest.raises(ValueError, match=r"train/blue/0 cannot be read: cannot identify image file"):
        items[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames=0: expected at least 1"),
        ({"stride": -1}, "stride=-1"),
        ({"test_views": 3}, "test_views=3: with stride=0 a clip"),
        ({"test_crops": 2}, "test_crops=2: expected 1 for the centre, or 3"),
        ({"randaugment": True, "train_crop": "none"}, "randaugment=true: expected train_crop=rrc"),
    ],
)
def test_options(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoList(root=str(root), **options)


def test_images_for_clips(root: Path, images: Path) -> None:
    """Data and task of other units are refused with what fits."""
    tiny: dict[str, Any] = {"backbone": "test_vit", "pretrained": False, "num_classes": 3}
    with pytest.raises(ValueError, match="VideoList has clips, and Classification reads images: pass --task video_cl"):
        module(root).follow(Classification(**tiny))
    with pytest.raises(
        ValueError, match="ImageDataset has images, and VideoClassification reads clips: pass --data Vid"
    ):
        ImageDataset(root=str(images)).follow(VideoClassification(**tiny))
    with pytest.raises(ValueError, match="in_chans=1: videos are read as RGB"):
        module(root).configure(INPUT | {"input_size": (1, 16, 16)})


def test_settings_of_fingerprints(root: Path) -> None:
    samples = module(root).samples("train")
    assert samples is not None
    assert module(root).digest(samples) != module(root, frames=3).digest(samples)
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(root / "train/blue/0/1.png")
    before = module(root).digest(samples)
    Image.fromarray(np.ones((24, 32, 3), np.uint8)).save(root / "train/blue/0/1.png")
    assert module(root).digest(samples) != before
