"""Optimizers by name, and groups by shape."""

import pytest
import torch
from torch import nn

from lightning_modules.optim.adam_atan2 import AdamATan2
from lightning_modules.optim.optimizers import OPTIMIZERS, build_optimizer, decay_matrices

KINDS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adam_atan2": AdamATan2,
    "adafactor": torch.optim.Adafactor,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name: str) -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2, 2))], "lr": 0.5}, {"params": [nn.Parameter(torch.ones(2))]}]
    optimizer = build_optimizer(name, groups, lr=0.1, eps=1e-6, fused=False)
    assert type(optimizer) is KINDS[name]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    if name in ("adam", "adamw"):
        assert {group["eps"] for group in optimizer.param_groups} == {1e-6}
    if name == "sgd":
        assert optimizer.param_groups[0]["momentum"] == 0.9


def test_unknown_optimizer() -> None:
    with pytest.raises(ValueError, match="optimizer='lion': expected one of adamw, adam, sgd, adam_atan2, adafactor"):
        build_optimizer("lion", [], lr=0.1, eps=1e-8, fused=False)


def test_decay_of_matrices() -> None:
    """A matrix with one row is a vector; a group without parameters is left out."""
    matrix, vector, row = (nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (3,), (1, 3)))
    groups = decay_matrices([matrix, vector, row], 0.5)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert [[id(p) for p in group["params"]] for group in groups] == [[id(matrix)], [id(vector), id(row)]]
    assert len(decay_matrices([vector], 0.5)) == 1
