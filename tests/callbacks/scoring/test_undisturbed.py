"""A model is as it was after a scoring pass."""

import pytest
import torch
from torch import nn

from callbacks.scoring.undisturbed import unchanged


def test_a_change_is_noticed() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="must leave the model as it was, but bias has"), unchanged(model):
        model.bias.data += 1
    with pytest.raises(RuntimeError, match="but weight has a gradient"), unchanged(model):
        model(torch.ones(1, 3)).sum().backward()
    with unchanged(model):
        assert model.weight.grad is None  # one that was left is not scored
