"""Metrics without waits, against those of torchmetrics."""

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.metrics import ClassAccuracy, WeightedMean


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
