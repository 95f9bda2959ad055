"""Metrics of numbers, beside those of torchmetrics."""

import pytest
import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, R2Score

from lightning_modules.number_metrics import NumberScore


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("MAE", MeanAbsoluteError()),
        ("RMSE", MeanSquaredError(squared=False, num_outputs=3)),
        ("R2", R2Score(multioutput="uniform_average")),
    ],
)
def test_equal_to_torchmetrics(name: str, other: Metric) -> None:
    draw = torch.Generator().manual_seed(0)
    metric = NumberScore(name, 3)  # type: ignore[arg-type]
    for _ in range(3):
        numbers = 1000 + torch.randn(8, 3, generator=draw)
        outputs = numbers + torch.randn(8, 3, generator=draw)
        valid = torch.rand(8, generator=draw) < 0.7
        metric.update(outputs, numbers, valid)
        other.update(outputs[valid].double(), numbers[valid].double())
    torch.testing.assert_close(metric.compute(), other.compute().mean().float(), atol=1e-5, rtol=1e-5)


def test_number_that_does_not_vary() -> None:
    metric = NumberScore("R2", 1)
    metric.update(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [2.0]]), torch.ones(2, dtype=torch.bool))
    assert float(metric.compute()) == 0
