"""A model is as it was after a scoring pass."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from lightning import seed_everything
from torch import nn

from callbacks.scoring.undisturbed import checksum, eagerly, unchanged


def test_a_change_is_noticed() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="must leave the model as it was, but bias has"), unchanged(model):
        model.bias.data += 1
    with pytest.raises(RuntimeError, match="but weight has a gradient"), unchanged(model):
        model(torch.ones(1, 3)).sum().backward()
    with unchanged(model):
        assert model.weight.grad is None  # one that was left is not scored


def draw() -> list[float]:
    """A number of every generator that a scoring pass may use."""
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]


def pass_of_scoring(model: nn.Sequential, fails: bool) -> None:
    with unchanged(model):
        draw()
        model.eval().requires_grad_(True)
        model[1].train()
        if fails:
            raise KeyError


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_modes_and_flags_come_back(fails: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].requires_grad_(False)
    model[1].eval()
    seed_everything(3, verbose=False)
    expected = draw()
    seed_everything(3, verbose=False)
    with pytest.raises(KeyError) if fails else nullcontext():
        pass_of_scoring(model, fails)
    assert draw() == expected
    assert [module.training for module in model.modules()] == [True, True, False]
    assert not any(parameter.requires_grad for parameter in model[0].parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_checksum_sees_the_last_bit(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, 4, dtype=dtype)
    other = tensor.clone()
    raw = other.view(torch.uint8)
    raw[1, 0] ^= 1
    assert checksum(tensor) == checksum(tensor.T) == checksum(tensor.clone())
    assert checksum(tensor) != checksum(other)
    assert checksum(torch.empty(0, dtype=dtype)) == 0


def test_no_graph_is_made() -> None:
    ran = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        ran.append(len(inputs))
        return graph

    model = nn.Linear(2, 2)
    model.compile(backend=backend)
    with eagerly():
        model(torch.ones(1, 2))
    assert not ran
    model(torch.ones(1, 2))
    assert ran
