"""Dtypes of trained tensors, and statistics of a frozen backbone."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins import Precision
from timm.layers import EvoNorm2dB0
from torch import nn

from methods import PEFTMethod
from methods.core.precision import default_dtype, kept_in_fp32, updates_statistics
from tests.conftest import random_tiny

Build = Callable[..., PEFTMethod]


def test_partners_in_a_norm_keep_fp32() -> None:
    """A frozen weight beside a trained bias: the norm would otherwise mix two dtypes in one call."""
    norm, linear = nn.LayerNorm(4), nn.Linear(4, 4)
    norm.weight.requires_grad_(False)
    linear.weight.requires_grad_(False)
    assert [id(p) for p in kept_in_fp32(norm)] == [id(norm.weight), id(norm.bias)]
    assert [id(p) for p in kept_in_fp32(linear)] == [id(linear.bias)]
    assert kept_in_fp32(norm.requires_grad_(False)) == []


def test_statistics_of_a_batch_norm() -> None:
    norm = nn.BatchNorm2d(2)
    assert updates_statistics(norm)
    norm.weight.requires_grad_(False)
    assert not updates_statistics(norm)
    assert not updates_statistics(nn.BatchNorm2d(2, affine=False))
    assert not updates_statistics(nn.LayerNorm(2))
    assert updates_statistics(EvoNorm2dB0(2))


def test_default_dtype_comes_back() -> None:
    with default_dtype(torch.float64):
        assert torch.ones(1).dtype is torch.float64
    with pytest.raises(KeyError), default_dtype(torch.float64):
        raise KeyError
    assert torch.ones(1).dtype is torch.float32


def test_cast_leaves_what_trains(build: Build) -> None:
    model = build("ssf")
    model.configure_model()
    model.to(torch.bfloat16)
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert model.backbone.blocks[0].attn.qkv.weight.dtype is torch.bfloat16


@pytest.mark.parametrize(("method", "moves"), [("linear_probe", False), ("full", True)])
def test_batch_norms_of_a_frozen_backbone_stay(method: str, moves: bool) -> None:
    options: dict[str, Any] = {"backbone": "resnet18", "backbone_args": {}}
    model = random_tiny(method, **options)
    model.configure_model()
    model.train()
    norm = model.backbone.bn1
    before = norm.running_mean.clone()
    model(torch.randn(4, 3, 32, 32))
    assert norm.training is moves
    assert torch.equal(norm.running_mean, before) is not moves


def test_ranks_share_statistics_that_change() -> None:
    model = random_tiny("ssf", backbone="resnet18", backbone_args={}, head_batch_norm=True)
    model.configure_model()
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: (tensor + 4) / 2)  # the other rank has 4 everywhere
    model._trainer = SimpleNamespace(world_size=2, strategy=strategy)  # type: ignore[assignment]
    assert torch.equal(model.head_norm.running_var, torch.ones(512))  # no pass of adapt changed it
    frozen = model.backbone.bn1.running_mean.clone()
    model.on_validation_start()
    assert torch.equal(model.head_norm.running_mean, torch.full((512,), 2.0))
    assert torch.equal(model.head_norm.running_var, torch.full((512,), 2.5))
    assert torch.equal(model.backbone.bn1.running_mean, frozen)


def test_other_precisions_are_refused(build: Build, trainer: Callable[..., Trainer]) -> None:
    class Replaced(Precision):
        """A precision of Lightning that exchanges the layers of a model."""

        precision: Any = "transformer-engine"

    with pytest.raises(ValueError, match=r"trainer\.precision=transformer-engine: LoRA cannot train in it"):
        trainer(plugins=[Replaced()]).fit(build("lora"))
