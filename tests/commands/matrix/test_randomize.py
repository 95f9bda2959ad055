"""Random weights without zeros."""

import torch

from commands.matrix.families import build
from commands.matrix.randomize import randomize


def test_no_parameter_is_zero() -> None:
    for name in ("beit", "resnet", "convit"):
        model = randomize(build(name), 32)
        assert all(2 * p.count_nonzero() >= p.numel() for p in model.parameters())


def test_equal_every_time() -> None:
    first, second = (randomize(build("resnet"), 32).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
