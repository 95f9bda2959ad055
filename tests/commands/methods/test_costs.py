"""Costs of methods on the meta device."""

from typing import Any

import pytest
import torch

from commands.methods.costs import costs, work
from lightning_modules.batch import Batch
from lightning_modules.classification import Classification
from methods import METHODS, compose
from tests.conftest import BACKBONE, ROOT

FEW = ("bitfit", "dyt", "gps", "linear_probe", "lora", "velora")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.methods.costs.METHODS", {name: METHODS[name] for name in FEW})


@pytest.mark.usefixtures("few")
def test_costs_of_real_tensors() -> None:
    found = dict(costs("vit_tiny_patch16_224.augreg_in21k", 10))
    assert list(found) == list(FEW)
    for name in ("bitfit", "lora", "linear_probe"):
        cls: Any = compose(METHODS[name], task=Classification)
        model = cls(backbone="vit_tiny_patch16_224", pretrained=False, num_classes=10)
        model.configure_model()
        counts = model.parameter_counts()
        assert (found[name].method, found[name].head) == (counts["method"], counts["head"])
        assert found[name].storage == model.storage_bytes()
    assert found["gps"].reason == "chosen from data"
    assert found["velora"].reason == "stacks on another"
    assert torch.empty(0).device.type == "cpu"


def test_unknown_backbone() -> None:
    with pytest.raises(ValueError, match="timm has no such model"):
        next(costs(f"{BACKBONE}x", 10))


def test_work_of_a_step() -> None:
    batch = Batch.of(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1]))
    backbone = f"local-dir:{ROOT / 'assets/micro_vit'}"
    found = {name: work(name, backbone, batch) for name in ("linear_probe", "gps", "full")}
    assert found["linear_probe"].saved < found["gps"].saved <= found["full"].saved
    assert found["linear_probe"].gflops == found["full"].gflops
    assert work("last", backbone, batch, last_rank=64).saved > work("last", backbone, batch).saved
    assert work("dyt", backbone, batch).gflops is None, "it depends on the image"
