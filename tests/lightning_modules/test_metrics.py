"""Metrics without waits, against those of torchmetrics."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryJaccardIndex,
    MulticlassAccuracy,
    MulticlassJaccardIndex,
    MulticlassRecall,
)

from lightning_modules.metrics import ClassAccuracy, ConfusionShare, ForegroundShare, WeightedMean
from tests.support.golden import Golden


@pytest.mark.parametrize(("average", "top_k"), [("micro", 1), ("micro", 5), ("macro", 1)])
def test_accuracy_of_torchmetrics(average: str, top_k: int) -> None:
    """Some classes have no sample, some are never predicted, some samples are padding."""
    draw = torch.Generator().manual_seed(0)
    ours = ClassAccuracy(9, -100, average=average, top_k=top_k)  # type: ignore[arg-type]
    theirs = MulticlassAccuracy(9, ignore_index=-100, average=average, top_k=top_k)  # type: ignore[arg-type]
    for _ in range(3):
        outputs = torch.randn(16, 9, generator=draw).round(decimals=1)  # some are equal
        outputs[:, 3] = -9.0
        labels = torch.randint(7, (16,), generator=draw)
        labels[labels == 2] = -100
        ours.update(outputs, labels)
        theirs.update(outputs, labels)
    torch.testing.assert_close(ours.compute(), theirs.compute())


def test_weighted_mean() -> None:
    metric = WeightedMean()
    metric.update(torch.tensor([1.0, 4.0, torch.nan]), torch.tensor([True, True, False]))
    metric.update(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([1.0, 0.0]))
    assert float(metric.compute()) == (1 + 4 + 1 + 5) / 4
    metric.update(torch.tensor([torch.nan]), torch.tensor([1.0]))
    assert metric.compute().isnan()


def test_confusion_of_the_published_code(pytestconfig: pytest.Config) -> None:
    """Counts as in mmsegmentation; one class has no pixel, some pixels are ignored."""
    tensors = Golden(Path(pytestconfig.getoption("--golden-dir")) / "dense_tasks.safetensors").part("seg")
    for share, name in {"iou": "miou", "accuracy": "macc", "pixels": "aacc"}.items():
        metric = ConfusionShare(share, 7, 255)  # type: ignore[arg-type]
        for prediction, label in zip(tensors["pred"].long(), tensors["label"].long(), strict=True):
            metric.update(torch.nn.functional.one_hot(prediction[None], 7).movedim(-1, 1), label[None])
        torch.testing.assert_close(metric.compute().double(), tensors[name][0], atol=1e-7, rtol=0)
    iou = ConfusionShare("iou", 7, 255)
    iou.counts = metric.counts
    torch.testing.assert_close(iou.per_class().nan_to_num(-1), tensors["iou"], atol=1e-12, rtol=0)


def test_confusion_of_torchmetrics() -> None:
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 5, 8, 9, generator=draw)
    labels = torch.randint(4, (3, 8, 9), generator=draw).masked_fill(torch.rand(3, 8, 9, generator=draw) < 0.1, 255)
    pairs = [
        (ConfusionShare("iou", 5, 255), MulticlassJaccardIndex(5, ignore_index=255)),
        (ConfusionShare("accuracy", 5, 255), MulticlassRecall(4, ignore_index=255)),
        (ConfusionShare("pixels", 5, 255), MulticlassAccuracy(5, ignore_index=255, average="micro")),
    ]
    for ours, theirs in pairs:
        ours.update(outputs, labels)
        if ours.share == "accuracy":  # torchmetrics also averages over a class that is only predicted
            kept = outputs[:, :4].argmax(1)
            ours.reset()
            ours.update(outputs[:, :4], labels)
            theirs.update(kept, labels)
        else:
            theirs.update(outputs, labels)
        torch.testing.assert_close(ours.compute(), theirs.compute())


@pytest.mark.parametrize(
    ("share", "per_image", "name"),
    [
        ("dice", False, "dice_global"),
        ("iou", False, "iou_global"),
        ("dice", True, "dice_image_mean"),
        ("iou", True, "iou_image_mean"),
        ("recall_dice", False, "gps_code_dice"),
        ("recall", False, "gps_code_iou"),
    ],
)
def test_foreground_of_the_published_code(share: Any, per_image: bool, name: str, pytestconfig: pytest.Config) -> None:
    """The true shares, and what the code of GPS calls mDice and mIoU: a recall, in which no false alarm counts."""
    tensors = Golden(Path(pytestconfig.getoption("--golden-dir")) / "dense_tasks.safetensors").part("bin")
    metric = ForegroundShare(share, per_image)
    for classes, labels in zip(tensors["pred"].split(3), tensors["label"].split(3), strict=True):
        metric.update((2.0 * classes - 1)[:, None], labels.long())
    torch.testing.assert_close(metric.compute().double(), tensors[name][0], atol=1e-6, rtol=0)


def test_foreground_of_torchmetrics() -> None:
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 1, 8, 9, generator=draw)
    labels = torch.randint(2, (3, 8, 9), generator=draw).masked_fill(torch.rand(3, 8, 9, generator=draw) < 0.1, 255)
    for share, theirs in {"dice": BinaryF1Score, "iou": BinaryJaccardIndex}.items():
        ours = ForegroundShare(share)  # type: ignore[arg-type]
        ours.update(outputs, labels)
        expected = theirs(128 / 255, ignore_index=255)(outputs[:, 0], labels)
        torch.testing.assert_close(ours.compute(), expected)


def test_images_without_foreground() -> None:
    """Such an image counts 1 if nothing is predicted, and 0 otherwise; one without labels does not count."""
    labels = torch.zeros(3, 2, 2, dtype=torch.long)
    labels[2] = 255
    outputs = torch.full((3, 1, 2, 2), -1.0)
    outputs[1] = 1.0
    metric = ForegroundShare("dice", per_image=True)
    metric.update(outputs, labels)
    assert float(metric.compute()) == 0.5
