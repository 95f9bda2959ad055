"""Scores of channels for each class."""

import pytest
import torch
from torch import nn

from callbacks.scoring.class_scorer import ClassSquares


def test_class_squares_by_hand() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    x, labels = torch.randn(5, 4, 3), torch.tensor([0, 2, 0, 2, 2])
    with ClassSquares(model, ["0:input", "1"], num_classes=3, prefix=1) as scorer:
        for part in (slice(0, 2), slice(2, 5)):
            scorer.observe(labels[part])
            model(x[part])
    for name in ("0:input", "1"):
        for label in range(3):
            expected = x[labels == label][:, 1:].square().sum((0, 1))  # the class token is left out
            torch.testing.assert_close(scorer.sums[name][label], expected)
    assert scorer.sums["images"].tolist() == [2, 0, 3]


def test_soft_labels_are_refused() -> None:
    scorer = ClassSquares(nn.Sequential(nn.Linear(6, 5)), ["0"], 3, 0)
    with pytest.raises(ValueError, match="one class per image"):
        scorer.observe(torch.rand(4, 3))
