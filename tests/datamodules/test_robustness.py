"""Test sets for classifiers of ImageNet, from trees of one small image a class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torchvision.transforms.v2.functional import pil_to_tensor

from datamodules import ImageNetA, ImageNetC, ImageNetR, ImageNetSketch, ImageNetV2
from datamodules.imagenet import WNIDS
from datamodules.robustness import ALEXNET, EXTRA
from tests.datamodules.test_imagenet import fill
from tests.datamodules.test_vtab import ready
from tests.support.pictures import INPUT, picture


@pytest.mark.parametrize(("cls", "shared"), [(ImageNetA, {6, 988}), (ImageNetR, {1, 988})])
def test_sets_of_200_classes(cls: Any, shared: set[int], tmp_path: Path) -> None:
    labels = sorted(cls.folders.values())
    assert len(set(labels)) == 200
    assert {labels[0], labels[-1]} == shared
    fill(tmp_path / cls.inside[0], [WNIDS[label] for label in labels])
    for root in (tmp_path, tmp_path / cls.inside[0]):
        assert cls(str(root)).samples("test").labels.tolist() == labels
    assert cls(str(tmp_path)).class_subset == labels
    assert cls(str(tmp_path), class_mask="full").class_subset is None
    with pytest.raises(ValueError, match="the data have no train split"):
        ready(cls(str(tmp_path)))


def test_a_and_r_share_86_classes() -> None:
    assert len(set(ImageNetA.folders) & set(ImageNetR.folders)) == 86


def test_v2_folders_are_numbers(tmp_path: Path) -> None:
    fill(tmp_path, [str(number) for number in range(1000)])
    samples: Any = ImageNetV2(str(tmp_path)).samples("test")
    assert [samples.labels[i] == int(Path(samples.paths[i]).parent.name) for i in range(1000)] == [True] * 1000


def test_sketch(tmp_path: Path) -> None:
    fill(tmp_path / "sketch", WNIDS)
    assert ImageNetSketch(str(tmp_path)).samples("test").labels.tolist() == list(range(1000))  # type: ignore[union-attr]
    with pytest.raises(FileNotFoundError, match="1000 of 1000 class folders are missing"):
        ImageNetSketch(str(tmp_path / "sketch" / WNIDS[0])).samples("test")


def test_a_prediction_is_one_of_the_subset(
    tmp_path: Path, build: Callable[..., Any], trainer: Callable[..., Trainer]
) -> None:
    fill(tmp_path, list(ImageNetA.folders))
    model = build("linear_probe", num_classes=1000)
    for mask in ("subset", "full"):
        data = ImageNetA(str(tmp_path), class_mask=mask, num_workers=0, eval_batch_size=64)  # type: ignore[arg-type]
        runner = trainer()
        predicted: Any = torch.cat(runner.predict(model, datamodule=data))  # type: ignore[arg-type]
        runner.test(model, datamodule=data, verbose=False)
        chosen = set(predicted.argmax(dim=1).tolist())
        plain = model.masked(torch.zeros(1, 1000))
        assert (chosen <= set(ImageNetA.folders.values())) == (mask == "subset")
        assert int(plain.isfinite().sum()) == (200 if mask == "subset" else 1000)
        right = (predicted.argmax(dim=1) == torch.tensor(list(ImageNetA.folders.values()))).float().mean()
        assert float(runner.callback_metrics["test/acc1"]) == pytest.approx(float(right))
        assert runner.callback_metrics["test/loss"].isfinite()


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    """One image of each class; every corruption and severity is a link to the same folders, some in an archive's."""
    fill(tmp_path / "same", WNIDS)
    for number, corruption in enumerate([*ALEXNET, *EXTRA]):
        folder = tmp_path / "c" / (corruption if number % 2 else f"noise/{corruption}")
        folder.mkdir(parents=True)
        for severity in range(1, 6):
            (folder / str(severity)).symlink_to(tmp_path / "same")
    return tmp_path / "c"


def test_corruption_score_by_hand(corrupted: Path) -> None:
    module = ImageNetC(str(corrupted))
    wrong = {f"{name}/{s}": 1 - error for name, error in ALEXNET.items() for s in range(1, 6)}
    assert module.summary(wrong)["mCE"] == pytest.approx(100), "AlexNet's own"
    wrong |= {f"fog/{s}": 1 - 0.1 * s for s in range(1, 6)}  # mean error 0.3
    scores = module.summary(wrong)
    assert scores["mCE"] == pytest.approx((14 * 100 + 100 * 0.3 / 0.819324) / 15)
    assert scores["fog"] == pytest.approx(0.7)


def test_test_of_all_corruptions(corrupted: Path, build: Callable[..., Any], trainer: Callable[..., Trainer]) -> None:
    runner = trainer(limit_test_batches=1)
    data = ImageNetC(str(corrupted), extra=True, num_workers=0, eval_batch_size=5)
    runner.test(build("linear_probe", num_classes=1000), datamodule=data, verbose=False)
    values = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert len(data.test_dataloader()) == 19 * 5
    names = {f"test/{c}/{s}" for c in [*ALEXNET, *EXTRA] for s in range(1, 6)}
    assert names | {"test/mCE", "test/fog", "test/spatter", "test/acc1"} <= values.keys()
    by_hand = 100 * (1 - values["test/acc1"]) * sum(1 / error for error in ALEXNET.values()) / 15  # all the same images
    assert values["test/mCE"] == pytest.approx(by_hand)


def test_corrupted_images(corrupted: Path) -> None:
    module = ImageNetC(str(corrupted))
    samples: Any = module.samples("test")
    assert len(samples.labels) == 75_000
    assert samples.labels[1234] == 234
    assert samples.name(1234).endswith(f"gaussian_noise/2/{WNIDS[234]}/a b.JPEG")
    assert samples.keep([1234]).name(0) == samples.name(1234)
    module.configure(INPUT)
    image = picture(0, 16, 16)
    assert torch.equal(module.to_pixels(image), pil_to_tensor(image)), "a crop of the right size is resized again"


def test_missing_corruption(corrupted: Path) -> None:
    (corrupted / "noise/fog/3").unlink(missing_ok=True)
    (corrupted / "fog/3").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="has no folder fog/3"):
        ImageNetC(str(corrupted)).samples("test")
