"""SPT's choice under a budget against a plain search with sorts."""

from math import ceil

import pytest
import torch
from torch import Tensor

from methods.layers.spt_budget import Part, Sweep, sweep


def naive(
    parts: list[Part], scores: list[Tensor], alpha: float, beta: float, extra: int, unit: float, budget: float
) -> tuple[int, set[str], dict[str, list[int]]] | None:
    """The same with all values sorted for each number of marks: total, dense parts, entries."""
    values = torch.cat(scores)
    best: float = 0
    chosen = None
    for step in range(1, 80):
        count = ceil(step * 0.02 * unit)
        if count > len(values):
            continue
        marked = torch.zeros(len(values), dtype=torch.bool)
        marked[values.sort(descending=True, stable=True).indices[:count]] = True
        dense, entries, total, start = set(), {}, extra, 0
        for part in parts:
            marks = marked[start : start + part.size]
            start += part.size
            cost = part.size if part.vector else part.module
            if cost and marks.any() and int(marks.sum()) >= (part.size / beta if part.vector else cost / alpha):
                dense.add(part.name)
                total += cost
            elif marks.any():
                entries[part.name] = marks.nonzero().view(-1).tolist()
                total += int(marks.sum())
        if abs(total / unit - budget) <= abs(best - budget):
            best, chosen = total / unit, (total, dense, entries)
    return chosen


def small_pool(levels: int, seed: int) -> tuple[list[Part], list[Tensor]]:
    """Parts of all kinds with scores of few different values, so that every cut falls between equal ones."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        "a": (400, False, 60),
        "b": (30, True, 0),
        "c": (700, False, 0),
        "d": (300, False, 200),
        "e": (25, True, 0),
    }
    parts = [Part(name, name, 0, size, vector, module) for name, (size, vector, module) in sizes.items()]
    scores = [torch.randint(levels, (part.size,), generator=generator).float() ** 2 / levels for part in parts]
    scores[1] *= 3  # some parts matter more
    return parts, scores


@pytest.mark.parametrize("levels", [3, 50, 10**6])
@pytest.mark.parametrize("beta", [5.0, 1.2])
def test_the_sweep_is_that_of_79_sorts(levels: int, beta: float) -> None:
    parts, scores = small_pool(levels, seed=levels)
    for alpha in (10.0, 0.8):
        found = sweep(parts, scores, alpha, beta, extra=7, unit=900)
        for budget in (0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 1.5):
            expected = naive(parts, scores, alpha, beta, 7, 900, budget)
            if expected is None:
                with pytest.raises(ValueError, match="cannot be met: the smallest choice"):
                    found.step_for_budget(budget)
                continue
            step = found.step_for_budget(budget)
            entries = {part.name: index.tolist() for part, index in found.entries(step).items()}
            dense = {part.name for part in found.dense_parts(step)}
            assert (found.params(step), dense, entries) == expected


def test_marks_are_nested_and_modules_stay() -> None:
    parts, scores = small_pool(50, seed=1)
    found = sweep(parts, scores, unit=900)
    assert all(len(found.positions) >= count for count in found.marks)
    assert len(set(found.positions.tolist())) == len(found.positions)
    assert bool((found.dense[1:] >= found.dense[:-1]).all())
    single = sweep(parts, scores, unit=900, extra=3, granularity="unstructured_only")
    assert [single.params(step) for step in range(len(single.marks))] == [count + 3 for count in single.marks]
    modules = sweep(parts, scores, unit=900, granularity="structured_only")
    assert torch.equal(modules.dense, found.dense)
    assert modules.params(9) == int(found.structured[9])
    assert not modules.entries(9)


def test_alpha_decides_between_all_and_none() -> None:
    parts, scores = small_pool(10**6, seed=2)
    everything = sweep(parts, scores, alpha=float("inf"), unit=900)
    touched = {parts[i].name for i in everything.owners[: everything.marks[0]].tolist() if parts[i].module}
    assert touched == {part.name for part in everything.dense_parts(0) if not part.vector}
    nothing = sweep(parts, scores, alpha=1e-9, unit=900)
    assert not any(not part.vector for part in nothing.dense_parts(len(nothing.marks) - 1))


def test_budgets_that_cannot_be_met_are_refused() -> None:
    parts, scores = small_pool(50, seed=1)
    found: Sweep = sweep(parts, scores, extra=9, unit=900)
    with pytest.raises(ValueError, match="at most the pool of 1,455"):
        found.step_for_budget(1.7)
    with pytest.raises(ValueError, match="expected more than 9"):
        found.step_for_budget(0.01)
    with pytest.raises(ValueError, match="the pool is too small"):
        sweep(parts, scores, unit=1e6).step_for_budget(0.001)
    with pytest.raises(ValueError, match="every score is zero"):
        sweep(parts, [torch.zeros_like(score) for score in scores], unit=900)
    for bad in (float("nan"), float("inf"), -1.0):
        scores[2][5] = bad
        with pytest.raises(ValueError, match="expected finite ones"):
            sweep(parts, scores, unit=900)
