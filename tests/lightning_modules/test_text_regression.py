"""Regression of a number of a text: loss, correlations, files."""

from typing import Any

import pytest
import torch
from lightning import seed_everything

from lightning_modules.batch import Batch
from lightning_modules.text_regression import TextRegression
from methods import METHODS, PEFTMethod, compose
from tests.conftest import checkpoint_of, perturb
from tests.lightning_modules.test_text_classification import OPTIONS as OPTIONS  # the task contract reads it
from tests.lightning_modules.test_text_classification import batch

pytest.importorskip("transformers")


def model(**options: Any) -> Any:
    seed_everything(0, verbose=False)
    cls: Any = compose(METHODS["lora"], task=TextRegression)
    return cls(**OPTIONS, lr=1e-2, **options)


def numbers() -> Batch:
    return batch()._replace(targets=torch.tensor([0.5, 1.5, 4.0, 2.0]))


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_loss_by_hand(loss: str) -> None:
    task, data = model(loss=loss).eval(), numbers()
    errors = task(data.inputs)[:, 0] - data.targets
    by_hand = (errors**2 if loss == "mse" else errors.abs()).mean()
    torch.testing.assert_close(task.loss(data), by_hand)


def test_correlations_by_hand_without_padding() -> None:
    task = model()
    outputs = torch.tensor([[1.0], [2.0], [10.0], [3.0], [-50.0]])
    targets = torch.tensor([0.0, 1.0, 2.0, 3.0, 90.0])
    task.update(task.val_metrics, outputs, Batch(None, targets, torch.tensor([True] * 4 + [False])))
    found = {name: float(value) for name, value in task.val_metrics.compute().items()}
    by_hand = torch.corrcoef(torch.stack([outputs[:4, 0], targets[:4]]))[0, 1]
    assert found["val/pearson"] == pytest.approx(float(by_hand), abs=1e-5)
    assert found["val/spearman"] == pytest.approx(0.8, abs=1e-5)  # ranks 1 2 4 3 and 1 2 3 4
    assert found["val/MAE"] == pytest.approx((1 + 1 + 8 + 0) / 4)


def test_constant_outputs_have_no_correlation() -> None:
    task = model()
    task.update(
        task.val_metrics, torch.ones(3, 1), Batch.of(None, torch.arange(3.0))._replace(valid=torch.ones(3).bool())
    )
    assert float(task.val_metrics.compute()["val/pearson"]) == 0


def test_it_learns_merges_and_loads() -> None:
    """A mean of numbers alone leaves 1.6 of the squared errors."""
    task, data = model(), numbers()
    task.configure_model()
    perturb(task)
    task.eval()
    outputs = task(data.inputs)
    assert outputs.shape == (4, 1)
    torch.testing.assert_close(task.outputs_with(task.merge(), data.inputs), outputs, atol=1e-4, rtol=1e-3)
    seed_everything(0, verbose=False)
    again: Any = PEFTMethod.from_delta(checkpoint_of(task))
    torch.testing.assert_close(again.eval()(data.inputs), outputs, atol=1e-5, rtol=1e-5)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(data).backward()
        optimizer.step()
    assert task.loss(data).item() < 0.8
