"""Costs against numbers counted by hand."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from callbacks.cost import Cost, forward_gflops
from datamodules import ImageDataset
from methods import PEFTMethod
from tests.conftest import TINY

Build = Callable[..., PEFTMethod]
Data = Callable[..., ImageDataset]
MakeTrainer = Callable[..., Trainer]


def gflops_by_hand() -> float:
    """Of one image through the tiny ViT: two operations for each multiply-add of convolution and matrices."""
    width, heads, patch = TINY["embed_dim"], TINY["num_heads"], TINY["patch_size"]
    patches = (TINY["img_size"] // patch) ** 2
    tokens = patches + 1
    embed = patches * 3 * patch**2 * width
    linears = tokens * width * (3 * width + width + 2 * 4 * width)
    attention = heads * 2 * tokens**2 * (width // heads)
    return 2 * (embed + TINY["depth"] * (linears + attention) + 3 * width) / 1e9


def test_counts(build: Build, data: Data, trainer: MakeTrainer) -> None:
    model, cost = build("ssf"), Cost()
    trainer(callbacks=[cost], max_steps=1).fit(model, datamodule=data())
    head = (TINY["embed_dim"] + 1) * 3
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert cost.values["cost/trainable_params"] == trained
    assert cost.values["cost/trainable_params_no_head"] == trained - head
    assert cost.values["cost/trainable_pct"] == pytest.approx(100 * trained / everything)
    assert cost.values["cost/storage_bytes"] == 4 * trained
    assert 0.05 < cost.values["cost/peak_mem_gib"] < 100


def test_gflops(build: Build) -> None:
    model = build("linear_probe")
    model.configure_model()
    assert forward_gflops(model) == pytest.approx(gflops_by_hand(), rel=1e-6)


def test_counting_flops_changes_nothing(build: Build) -> None:
    model = build("linear_probe", drop_path=0.5)
    model.configure_model()
    model.backbone.frozen_norm = nn.BatchNorm1d(2)  # stays in eval mode while the model trains
    for training in (True, False):
        model.train(training)
        modes = [module.training for module in model.modules()]
        state = torch.get_rng_state()
        forward_gflops(model)
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("epochs", "counted"), [(1, 24), (3, 48)])
def test_images_per_second(
    epochs: int, counted: int, build: Build, data: Data, trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all epochs but the first, without evaluation; every epoch lasts four seconds of this clock."""
    cost = Cost()
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("callbacks.cost.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    trainer(callbacks=[cost], max_epochs=epochs).fit(build("linear_probe"), datamodule=data())
    assert cost.images == counted
    assert cost.values["cost/images_per_s"] == counted / (4 * max(epochs - 1, 1))


def test_costs_reach_the_logger(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    logger: Any = CSVLogger(tmp_path, name="", version="")
    cost = Cost()
    trainer(callbacks=[cost], logger=logger).fit(build("linear_probe"), datamodule=data())
    text = (tmp_path / "metrics.csv").read_text()
    assert all(name in text for name in cost.values)
