"""Costs against numbers counted by hand."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from callbacks.cost import Cost
from callbacks.measures import SavedBytes, forward_gflops, peak_memory, reset_peak_memory
from datamodules import ImageDataset
from methods import PEFTMethod
from tests.conftest import TINY
from tests.support.batches import as_batch

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
    assert cost.values["cost/trainable_params_method"] == trained - head
    assert cost.values["cost/trainable_pct"] == pytest.approx(100 * trained / everything)
    assert cost.values["cost/storage_bytes"] == 4 * trained
    assert 0.05 < cost.values["cost/peak_mem_gib"] < 100


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="only Linux resets it for a process")
def test_peak_memory_starts_anew() -> None:
    large = torch.ones(2**26)  # 256 MiB
    with_it = peak_memory()
    del large
    reset_peak_memory()
    assert peak_memory() < with_it - 2**27


def test_storage_of_a_method_with_a_packed_file(build: Build, data: Data, trainer: MakeTrainer) -> None:
    """One bit a weight and eight bytes a matrix, not what a training checkpoint holds."""
    model, cost = build("bi_adapter", bi_head=True), Cost()
    trainer(callbacks=[cost], max_steps=1).fit(model, datamodule=data())
    width, classes = TINY["embed_dim"], 3
    matrices = 2 * TINY["depth"] * (32 * width // 8 + 8)
    assert cost.values["cost/storage_bytes"] == matrices + width * classes // 8 + 8


def test_costs_of_a_method_without_training(build: Build, data: Data, trainer: MakeTrainer) -> None:
    """It stores the features and the classes of all 24 images, and its temperature; no activation is kept."""
    cost = Cost()
    trainer(callbacks=[cost]).fit(build("knn"), datamodule=data())
    assert cost.values["cost/storage_bytes"] == 24 * (4 * TINY["embed_dim"] + 8) + 4
    assert "cost/saved_mib" not in cost.values


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


def test_saved_activations_of_the_first_batch(build: Build, data: Data, trainer: MakeTrainer) -> None:
    """What a counter finds by hand, once; the fit itself goes as it would have gone."""
    models, cost = [], Cost()
    for callbacks in ([cost], []):
        models.append(build("lora", drop_path=0.1))
        trainer(callbacks=callbacks, max_steps=4).fit(models[-1], datamodule=data(batch_size=6))
    for name, tensor in models[0].delta_state_dict().items():
        assert torch.equal(tensor, models[1].delta_state_dict()[name]), name
    with SavedBytes(models[1]) as saved:
        loss = models[1].train().loss(as_batch(torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])))
    assert loss.isfinite()
    assert cost.values["cost/saved_mib"] == pytest.approx(saved.bytes / 2**20, rel=1e-3)
    assert cost.saved is None


def test_a_run_that_fails_leaves_no_counter(build: Build, data: Data, trainer: MakeTrainer) -> None:
    model, cost = build("lora"), Cost()
    model.losses = None  # type: ignore[assignment,method-assign]
    with pytest.raises(TypeError):
        trainer(callbacks=[cost], max_steps=1).fit(model, datamodule=data())
    x = torch.rand(4, requires_grad=True)
    assert (x * x).grad_fn._saved_self is x  # type: ignore[union-attr]


@pytest.mark.parametrize(("epochs", "counted"), [(1, 24), (3, 48)])
def test_images_per_second(
    epochs: int, counted: int, build: Build, data: Data, trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all epochs but the first, without evaluation; every epoch lasts four seconds of this clock."""
    cost = Cost()
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("callbacks.cost.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    trainer(callbacks=[cost], max_epochs=epochs).fit(build("linear_probe"), datamodule=data())
    assert cost.samples == counted
    assert cost.values["cost/images_per_s"] == counted / (4 * max(epochs - 1, 1))


def test_costs_reach_the_logger(build: Build, data: Data, trainer: MakeTrainer, tmp_path: Path) -> None:
    logger: Any = CSVLogger(tmp_path, name="", version="")
    cost = Cost()
    trainer(callbacks=[cost], logger=logger).fit(build("linear_probe"), datamodule=data())
    text = (tmp_path / "metrics.csv").read_text()
    assert all(name in text for name in cost.values)
