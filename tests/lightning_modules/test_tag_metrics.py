"""Metrics of tags, beside those of torchmetrics."""

from typing import Literal

import pytest
import torch
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

from lightning_modules.tag_metrics import MeanAveragePrecision, TagF1


def batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(3):
        logits = torch.randn(20, 4, generator=draw).round(decimals=1)  # so that some are equal
        tags = (torch.rand(20, 4, generator=draw) < 0.4).float()
        found.append((logits, tags, torch.rand(20, generator=draw) < 0.8))
    return found


def test_average_precision() -> None:
    metric, other = MeanAveragePrecision(), MultilabelAveragePrecision(4)
    for logits, tags, valid in batches():
        metric.update(logits, tags, valid)
        other.update(logits[valid].sigmoid(), tags[valid].long())
    torch.testing.assert_close(metric.compute(), other.compute())


def test_average_precision_by_hand() -> None:
    """Equal scores count together: two of three hits, then all three of four. Large logits stay apart."""
    metric, hits = MeanAveragePrecision(), torch.tensor([[1.0], [1.0], [0.0], [1.0]])
    metric.update(torch.tensor([[1.0], [3.0], [3.0], [3.0]]), hits, torch.ones(4, dtype=torch.bool))
    assert float(metric.compute()) == pytest.approx(2 / 3 * 2 / 3 + 1 / 3 * 3 / 4)
    metric.reset()
    metric.update(torch.tensor([[20.0], [30.0], [18.0], [25.0]]), hits, torch.ones(4, dtype=torch.bool))
    assert float(metric.compute()) == 1


def test_tags_without_an_image() -> None:
    metric, alone = MeanAveragePrecision(), MeanAveragePrecision()
    logits, tags, valid = batches()[0]
    metric.update(logits[:, :2], torch.stack([tags[:, 0], torch.zeros(20)], 1), valid)
    alone.update(logits[:, :1], tags[:, :1], valid)
    torch.testing.assert_close(metric.compute(), alone.compute())
    metric.reset()
    metric.update(logits, torch.zeros(20, 4), valid)
    assert float(metric.compute()) == 0


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_f1(average: Literal["micro", "macro"]) -> None:
    metric, other = TagF1(4, average), MultilabelF1Score(4, average=average)
    for logits, tags, valid in batches():
        metric.update(logits, tags, valid)
        other.update((logits[valid] > 0).long(), tags[valid].long())
    torch.testing.assert_close(metric.compute(), other.compute())
