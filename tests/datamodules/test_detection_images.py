"""Images with objects."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules.detection_folder import DetectionFolder
from lightning_modules.detection import Detection
from tests.lightning_modules.test_detection import OPTIONS
from tests.support.objects import read_json, write_objects


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_objects(tmp_path / "data", {"train": 4, "val": 2})
    return tmp_path / "data"


def data_of(root: Path, **options: Any) -> DetectionFolder:
    """Data that follow a tiny detector."""
    data = DetectionFolder(str(root), **{"short_sides": [32], "long_side": 64, "batch_size": 2} | options)
    data.follow(Detection(**OPTIONS))
    return data


def test_evaluation(root: Path) -> None:
    """The image is resized with its aspect; boxes and masks keep the size of the file."""
    data = data_of(root, short_sides=[64], long_side=80)
    samples: Any = data.samples("val")
    image, target = data.item(samples[0])  # 32 x 48: at 64 pixels the long side would have 96
    assert image.shape == (3, 53, 80)
    assert (target["size"], target["original"]) == ((53, 80), (32, 48))
    assert target["masks"].shape == (2, 32, 48)
    x, y, side, _ = read_json(root, "val")["annotations"][0]["bbox"]
    assert target["boxes"][0].tolist() == [x, y, x + side, y + side]
    assert int(target["masks"][0].sum()) == side * side
    assert target["iscrowd"].tolist() == [0, 0]


def test_training(root: Path) -> None:
    """Boxes and masks are resized and mirrored with the image: inside a box the colour of its class is bright."""
    data = data_of(root, short_sides=[40, 64], long_side=128)
    samples: Any = data.samples("train")
    sizes = set()
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = data.train_item(samples[seed % 4])
        sizes.add(min(image.shape[1:]))
        assert target["size"] == image.shape[1:]
        for box, label, mask in zip(target["boxes"], target["labels"].tolist(), target["masks"], strict=True):
            left, top, right, bottom = box.round().int().tolist()
            channel = 0 if label == 2 else 1  # class 2 is the category 7, red
            assert image[channel, top + 3 : bottom - 3, left + 3 : right - 3].float().mean() > 150
            assert mask[top + 2 : bottom - 2, left + 2 : right - 2].all()
            assert int(mask.sum()) == pytest.approx((right - left) * (bottom - top), rel=0.15)
    assert sizes == {40, 64}


def test_large_scale_jitter(root: Path) -> None:
    """Every training image is a square; padding has the mean colour and no mask."""
    data = data_of(root, jitter=[0.1, 2.0], long_side=48)
    samples: Any = data.samples("train")
    for seed in range(6):
        torch.manual_seed(seed)
        image, target = data.train_item(samples[seed % 4])
        assert image.shape == (3, 48, 48)
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        assert bool((target["boxes"] >= 0).all())
        assert bool((target["boxes"] <= 48).all())


def test_batches(root: Path) -> None:
    """Images are padded with the mean colour to a multiple of the divisor, boxes keep every bit as integers."""
    data = data_of(root)
    samples: Any = data.samples("train")
    items = [data.score_item(samples[index]) for index in (0, 1)]  # 32 x 48 and 40 x 32 pixels
    batch = data.collate(items)
    assert batch.inputs.shape == (2, 3, 48, 48)
    assert batch.inputs.dtype is torch.uint8
    assert batch.targets[0]["boxes"].dtype is torch.int32
    assert batch.valid.tolist() == [True, True]
    ready = data.on_device(batch)
    assert torch.equal(ready.targets[1]["boxes"], items[1][1]["boxes"])
    assert float(ready.inputs[1, :, :, 32:].abs().max()) < 0.02  # the mean colour is 0 after the normalisation
    assert float(ready.inputs[1, :, :, :32].abs().mean()) > 0.2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"short_sides": [800], "long_side": 600}, "expected pixels, none above the long side"),
        ({"jitter": [2.0, 0.1]}, r"jitter=\[2.0, 0.1\]"),
    ],
)
def test_refusals(options: dict[str, Any], reason: str, root: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        DetectionFolder(str(root), **options)


def test_scores_of_views_and_caches(root: Path) -> None:
    data = data_of(root)
    with pytest.raises(TypeError, match="contrastive scores"):
        data.view(SimpleNamespace())  # type: ignore[arg-type]
    assert data.varies() == ["data.flip=True", "padding to the largest image of a batch"]
    assert data_of(root, short_sides=[40]).item_settings() != data.item_settings()
    assert data.description()["short_sides"] == [32]
