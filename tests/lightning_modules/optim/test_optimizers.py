"""Optimizers by name."""

import pytest
import torch
from torch import nn

from lightning_modules.optim.adam_atan2 import AdamATan2
from lightning_modules.optim.optimizers import OPTIMIZERS, build_optimizer

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
