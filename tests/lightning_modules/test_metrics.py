"""Metrics without waits, against those of torchmetrics."""

from pathlib import Path

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex, MulticlassRecall

from lightning_modules.metrics import ClassAccuracy, ConfusionShare, WeightedMean
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
