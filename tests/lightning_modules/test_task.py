"""What all tasks share: terms of the loss, heads, random states."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from datamodules import ImageDataset
from lightning_modules.task import Task, total
from methods import PEFTMethod

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


def test_terms_are_added_and_logged(build: Build, data: Data, trainer: MakeTrainer) -> None:
    model: Any = build("linear_probe")
    plain = model.losses
    model.losses = lambda outputs, targets: plain(outputs, targets) | {"own_loss": torch.tensor(2.5)}
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(model, datamodule=data())
    logged = {name: float(value) for name, value in run.logged_metrics.items()}
    assert logged["train/own_loss"] == 2.5
    assert logged["train/loss"] == pytest.approx(logged["train/task_loss"] + 2.5)


def test_total() -> None:
    """One term is the loss itself; several are summed, and each gets the gradient 1."""
    a, b = torch.tensor(1.5, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    assert total({"a": a}) is a
    loss = total({"a": a, "b": b})
    loss.backward()
    assert (float(loss.detach()), a.grad, b.grad) == (3.5, torch.tensor(1.0), torch.tensor(1.0))


def test_heads(build: Build) -> None:
    model = build("linear_probe")
    assert list(model.heads()) == ["backbone.head"]
    assert model.head_names == ["head"]
    assert model.in_head("backbone.head.weight")
    assert not model.in_head("backbone.head_drop.weight")
    with pytest.raises(TypeError, match="the head of LinearProbeClassification cannot change its width to 7"):
        Task.resize_head(model, 7)


def test_random_state_depends_on_seed_and_epoch_alone(
    build: Build, monkeypatch: pytest.MonkeyPatch, trainer: MakeTrainer
) -> None:
    model = build("linear_probe")
    model.trainer = trainer()

    def draws(seed: int, epoch: int) -> tuple[float, float]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        monkeypatch.setattr(type(model), "current_epoch", epoch)
        model.on_train_epoch_start()
        return torch.rand(1).item(), float(np.random.rand())

    first = draws(0, 0)
    torch.manual_seed(5)
    assert draws(0, 0) == first
    others = [draws(0, 1), draws(1, 0), draws(1, 1)]
    assert len({first, *others}) == 4
