"""Images with masks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageDataset
from datamodules.segmentation_folder import SegmentationFolder
from tests.support.pictures import INPUT
from tests.support.scenes import write_scenes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "data", {"train": 4, "val": 2, "test": 2}, size=(24, 40))
    return tmp_path / "data"


def data(root: Path, **options: Any) -> SegmentationFolder:
    module = SegmentationFolder(root=str(root), **{"batch_size": 2} | options)
    module.configure(INPUT)
    return module


def test_training_and_evaluation(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Crops in training; in an evaluation whole images, resized with their aspect, and masks of their own size."""
    module = data(root)
    side = module.size[0]
    for split in ("train", "val"):
        module.splits[split] = module.dataset(split, module.samples(split))
    image, labels = module.splits["train"][0]
    assert image.shape == (3, side, side)
    assert (image.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert labels.shape == (side, side)
    image, labels = module.splits["val"][0]
    assert image.shape == (3, side, round(side * 40 / 24))
    assert labels.shape == (24, 40)
    assert type(image) is type(labels) is torch.Tensor
    image, labels = module.score_item(module.samples("train")[0])  # type: ignore[index]
    assert image.shape == (3, side, side)
    assert labels.shape == (side, side)
    batch = next(iter(module.score_batches(4)))
    assert batch.inputs.shape == (4, 3, side, side)
    assert module.varies() == ["data.train_crop=true"]
    assert data(root, train_crop=False).varies() == []
    assert "smaller than a crop" not in capsys.readouterr().out


def test_square(root: Path) -> None:
    """The whole image, without its aspect, in training, scoring and evaluation; a mask of an evaluation stays."""
    module = data(root, square=True, photometric=False)
    side, samples = module.size[0], module.samples("train")
    assert samples is not None
    expected = np.asarray(Image.open(samples.images[0]).resize((side, side), Image.Resampling.BILINEAR))
    for item in (module.train_item, module.score_item, module.item):
        image, labels = item(samples[0])
        found = image.permute(1, 2, 0).numpy().astype(int)
        assert min(np.abs(found - expected).mean(), np.abs(found[:, ::-1] - expected).mean()) < 2
        assert labels.shape == ((24, 40) if item == module.item else (side, side))
        assert set(labels.unique().tolist()) <= set(range(4))
    assert module.description()["resize"] == "square"
    assert module.digest(samples) != data(root).digest(samples)
    with pytest.raises(ValueError, match="square=true resizes to one size"):
        data(root, square=True, scale_range=[1.0, 1.0])


def test_settings_of_an_item(root: Path) -> None:
    samples: Any = data(root).samples("train")
    assert data(root).digest(samples) == data(root).digest(samples)
    assert data(root).digest(samples) != data(root, reduce_zero_label=True).digest(samples)


def broken(root: Path, what: str) -> None:
    """Give the first training mask a mistake."""
    file = root / "masks/train/0.png"
    values = np.asarray(Image.open(file)).copy()
    if what == "size":
        values = values[:-2]
    elif what == "class":
        values[3, 3] = 4
    elif what == "empty":
        values[:] = 255
    image = Image.fromarray(values)
    (image.convert("RGB") if what == "colour" else image).save(file)
    if what == "bytes":
        file.write_bytes(file.read_bytes()[:50])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("size", "its mask has 40 x 22 pixels, the image 40 x 24; expected equal sizes"),
        ("class", "its mask has the class 4, outside 0 to 3"),
        ("empty", "its mask is empty"),
        ("colour", "its mask has the mode RGB"),
        ("bytes", "truncated"),
    ],
)
def test_mistakes_in_masks(root: Path, what: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Found before training, with the name of the file; they can be left out."""
    broken(root, what)
    module = data(root)
    with pytest.raises(ValueError, match=rf"train: 1 of 4 images .*0.png \(.*{message}"):
        module.dataset("train", module.samples("train"))
    module = data(root, on_corrupt="skip", max_corrupt=0.5)
    assert len(module.dataset("train", module.samples("train"))) == 3
    assert "left out" in capsys.readouterr().out


def test_small_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = data(root, image_size=32)
    module.dataset("train", module.samples("train"))
    assert "note: train: 4 of 4 images are smaller than a crop, 32 x 32 pixels" in capsys.readouterr().out


def test_images_of_several_sizes(root: Path) -> None:
    for kind in ("images", "masks"):
        image = Image.open(root / kind / "val/0.png")
        image.resize((24, 24), Image.Resampling.NEAREST).save(root / kind / "val/0.png")
    module = data(root, eval_batch_size=2)
    with pytest.raises(ValueError, match="eval_batch_size=2: the val images have 2 sizes"):
        module.dataset("val", module.samples("val"))
    module.dataset("train", module.samples("train"))
    with pytest.raises(ValueError, match=r"pass --data\.eval_batch_size 1"):
        module.collate([module.item(module.samples("val")[index]) for index in range(2)])  # type: ignore[index]


def test_other_tasks_and_backbones(root: Path, images: Path) -> None:
    with pytest.raises(ValueError, match="SegmentationFolder has masks, and SimpleNamespace reads labels"):
        data(root).follow(SimpleNamespace(targets="labels", input_config=INPUT))
    with pytest.raises(ValueError, match="ImageDataset has labels of images, and SimpleNamespace reads masks"):
        ImageDataset(root=str(images)).follow(SimpleNamespace(targets="masks", input_config=INPUT))
    with pytest.raises(ValueError, match="in_chans=1: images with masks are read as RGB"):
        SegmentationFolder(root=str(root)).configure(INPUT | {"input_size": (1, 16, 16)})
    with pytest.raises(ValueError, match=r"scale_range=\[2.0, 0.5\]"):
        data(root, scale_range=[2.0, 0.5])
    with pytest.raises(TypeError, match="contrastive scores"):
        data(root).view(None)  # type: ignore[arg-type]
