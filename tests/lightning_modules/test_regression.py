"""Regression: losses, units and files."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from checkpoints.delta import write_adapter
from lightning_modules.batch import Batch
from lightning_modules.regression import Regression, check_names
from methods import METHODS, compose
from tests.conftest import BACKBONE, TINY, checkpoint_of

OPTIONS: dict[str, Any] = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": False, "num_targets": 2}
NUMBERS = torch.tensor([[100.0, 1.0], [300.0, 1.0], [500.0, 1.0]])


def model(**options: Any) -> Any:
    torch.manual_seed(0)
    built = compose(METHODS["lora"], task=Regression)(**OPTIONS | options)
    built.configure_model()
    return built.eval()


@pytest.mark.parametrize(("loss", "by_hand"), [("mse", F.mse_loss), ("mae", F.l1_loss), ("huber", F.huber_loss)])
def test_loss_of_standardised_numbers(loss: str, by_hand: Any) -> None:
    """A number that does not vary keeps its scale."""
    task = model(loss=loss)
    task.measure(NUMBERS)
    assert task.target_mean == [300.0, 1.0]
    assert task.target_std == pytest.approx([163.2993, 1.0])
    outputs = NUMBERS + torch.tensor([163.2993, 0.5])
    found = task.losses(outputs, NUMBERS)["task_loss"]
    torch.testing.assert_close(found, by_hand(torch.tensor([1.0, 0.5]), torch.zeros(2)))


@pytest.mark.parametrize("batch_norm", [False, True])
@torch.no_grad()
def test_units_of_files(batch_norm: bool, tmp_path: Path) -> None:
    """An adapter, a merged and an exported model give numbers in the units of the data."""
    task, images = model(head_batch_norm=batch_norm), torch.randn(2, 3, 32, 32)
    if batch_norm:
        task.head_norm.running_mean.uniform_()
        task.head_norm.running_var.uniform_(0.5, 2)
    plain = task(images)
    task.measure(NUMBERS)
    expected = task(images)
    torch.testing.assert_close(expected, plain * torch.tensor(task.target_std) + torch.tensor(task.target_mean))
    write_adapter(tmp_path / "adapter", checkpoint_of(task))
    torch.manual_seed(0)
    loaded: Any = type(task).from_delta(tmp_path / "adapter").eval()
    assert loaded.target_mean == task.target_mean
    torch.testing.assert_close(loaded(images), expected)
    merged = task.merge()
    torch.testing.assert_close(task.outputs_with(merged, images), expected, atol=1e-3, rtol=1e-4)
    task.target_names = ["mass", "size"]
    task.export(merged, tmp_path / "plain")
    exported = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True, **TINY).eval()
    torch.testing.assert_close(exported(images), expected, atol=1e-3, rtol=1e-4)


def test_metrics() -> None:
    task = model()
    batch = Batch(torch.zeros(3, 1), NUMBERS, torch.tensor([True, True, False]))
    task.update(task.val_metrics, NUMBERS + torch.tensor([30.0, 0.0]), batch)
    found = {name: float(value) for name, value in task.val_metrics.compute().items()}
    assert found == pytest.approx({"val/MAE": 15.0, "val/RMSE": 15.0, "val/R2": (1 - 1800 / 20000) / 2})


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="num_targets=0: expected at least 1"):
        model(num_targets=0)
    with pytest.raises(ValueError, match=r"expected lists of 2"):
        model().adopt({"mean": [1.0]})
    check_names([], ["a"])
    with pytest.raises(ValueError, match="the data have other numbers than the checkpoint: a in the data, b in"):
        check_names(["a"], ["b"])
