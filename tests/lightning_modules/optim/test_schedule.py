"""Schedules, value by value."""

import math

import pytest

from lightning_modules.optim.schedule import warmup_cosine


def test_warmup_and_cosine() -> None:
    factor = warmup_cosine(12, 2, lr=0.1, warmup_lr=0.02, min_lr=0.01)
    assert [factor(step) for step in (0, 1, 2)] == pytest.approx([0.2, 0.6, 1.0])
    middle = 0.01 + (0.1 - 0.01) * (1 + math.cos(math.pi / 2)) / 2
    assert factor(7) == pytest.approx(middle / 0.1)
    assert factor(12) == factor(99) == pytest.approx(0.1)  # stays at min_lr


def test_no_warmup() -> None:
    factor = warmup_cosine(10, 0, lr=0.1)
    assert factor(0) == 1.0
    assert factor(10) == pytest.approx(0.0)


def test_warmup_that_fills_the_run() -> None:
    """The last step has the peak, whatever number of steps was asked for."""
    factor = warmup_cosine(5, 50, lr=0.1, warmup_lr=0.0)
    assert [factor(step) for step in range(5)] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_warmup_from_above_the_peak() -> None:
    factor = warmup_cosine(10, 4, lr=0.1, warmup_lr=0.5)
    assert [factor(step) for step in range(4)] == [1.0] * 4
