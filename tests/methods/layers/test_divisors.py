"""Looks at trained divisors, and divisions by small ones."""

import copy
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from methods.layers.divisors import SMALLEST, DivisorLook, away_from_zero, divisible
from tests.support.ranks import TwoRanks


def test_small_divisors_keep_their_sign() -> None:
    found = away_from_zero(torch.tensor([2.0, -1e-9, 0.0, -0.5]))
    torch.testing.assert_close(found, torch.tensor([2.0, -SMALLEST, SMALLEST, -0.5]))


def test_a_look_is_one_step_late() -> None:
    look, large, small = DivisorLook(), torch.ones(3), torch.tensor([1.0, 1e-5])
    assert look([large, small], True) == [True, False]
    assert look([large, large], False) == [True, False]
    assert look([small, large], False) == [True, True]
    assert copy.deepcopy(look)([large, large], False) == [True, True]
    assert look([large, large], True) == [True, True]


def test_division_without_a_look() -> None:
    large, small = torch.ones(3), torch.tensor([1.0, 1e-5])
    assert divisible(large, None)
    assert not divisible(small, None)
    assert divisible(small, True)  # of the step before
    assert not divisible(large, False)
    with torch.no_grad():  # no backward pass follows
        assert divisible(small, None)


def look_at_shards(rank: int) -> list[bool]:
    distributed.init_process_group("gloo")
    mesh: Any = init_device_mesh("cpu", (2,))
    # the small one is on rank 1; of a single channel rank 1 has none
    values = [torch.tensor([1.0, 1.0, 1.0, 1e-5]), torch.ones(4), torch.ones(1)]
    return DivisorLook()([distribute_tensor(value, mesh, [Shard(0)]) for value in values], True)


def test_all_ranks_look_at_all_shards(two_ranks: TwoRanks) -> None:
    assert two_ranks(look_at_shards) == [[False, True, True]] * 2
