"""Looks at trained divisors, and divisions by small ones."""

import copy

import torch

from methods.layers.divisors import SMALLEST, DivisorLook, away_from_zero


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
