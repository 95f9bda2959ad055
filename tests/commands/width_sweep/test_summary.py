"""Summary of a sweep."""

import math

import pytest

from commands.width_sweep.summary import summarise
from tests.support.sweeps import table


def test_summary_by_hand() -> None:
    points = table({64: [1.0, 0.9, 0.8, 1.1], 128: [0.9, 0.7, 0.8, math.inf], 256: [0.5, 0.6, 2.5, math.inf]})
    found = summarise(points, "mup", "full")
    assert found["best_lr"] == {64: 4.0, 128: 2.0, 256: 1.0}
    assert found["best_loss"] == {64: 0.8, 128: 0.7, 256: 0.5}
    assert found["drift"] == pytest.approx(-1.0)
    assert found["best_at_edge"] == [256]
    assert found["largest_stable_lr"] == {64: 8.0, 128: 4.0, 256: 2.0}
    assert found["transfer_penalty"] == pytest.approx({64: 0.0, 128: 0.1, 256: 2.0})


def test_seeds_are_averaged() -> None:
    found = summarise(table({16: [1.0, 0.5], 32: [1.0, 0.5]}, seeds=2), "mup", "full")
    assert found["best_loss"] == pytest.approx({16: 0.55, 32: 0.55})
    assert found["drift"] == 0
