"""Used parameters of a network."""

from typing import Any

import timm
import torch
from torch import nn

from backbones.used import used_parameters


def test_used_parameters_leave_the_network_as_it_is() -> None:
    """A layer without a call is not used; modes, flags and statistics stay."""
    model: Any = timm.create_model("resnet18").train()
    model.bn1.eval()
    model.requires_grad_(False)
    model.extra = nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    used = used_parameters(model, lambda: model(torch.zeros(1, 3, 32, 32)))
    assert used == set(before) & {n for n, _ in model.named_parameters()} - {"extra.weight", "extra.bias"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model.training, model.bn1.training, model.layer1.training) == (True, False, True)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"extra.weight", "extra.bias"}
