"""The small members of the timm families: none is missing, and each trains in full."""

import pytest
import timm
import torch
from torch import nn

from commands.matrix.families import FAMILIES, build
from commands.matrix.randomize import NO_GRADIENT, randomize


def test_families_of_timm() -> None:
    modules = {module for module in timm.list_modules() if timm.list_models(module=module)} - {"small_models"}
    known = {name.partition("/")[0] for name in FAMILIES}
    assert known == modules, "commands/matrix/families.py has a member of each family of timm, and of no other"


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.slow])
def test_gradients(name: str) -> None:
    """Otherwise a method with a layer in the wrong place could pass: its parameters would get zeros as well."""
    size = FAMILIES[name].size
    model = randomize(build(name), size)
    logits = model(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 3)
    assert logits.abs().max() < 100
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9]
    assert not [n for n in without if not n.endswith(NO_GRADIENT)]
