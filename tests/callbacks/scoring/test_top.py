"""Positions of the largest scores, with ties to the left."""

import pytest
import torch
from torch import Tensor

from callbacks.scoring.top import bits, largest, top, top_of_all, top_of_rows


def test_ties_go_to_the_left() -> None:
    score = torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_of_rows(score, 2).tolist() == [1, 2, 4, 5]
    assert top_of_rows(score, 9).tolist() == list(range(8))


def test_largest_is_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(1000, generator=generator) ** 8, torch.zeros(50), torch.randint(4, (500,)).float() / 3]
    scores[1][7] = -0.0
    order = torch.cat(scores).sort(descending=True, stable=True).indices
    for count in (1, 10, 499, 1499, 1550):
        positions, owners = largest(scores, count)
        assert torch.equal(positions, order[:count])
        assert torch.equal(owners, torch.bucketize(positions, torch.tensor([1000, 1050]), right=True))


def by_sorting(score: Tensor, k: int) -> list[int]:
    """Ascending positions of the k largest entries of a flat score, by a stable sort."""
    return sorted(score.sort(descending=True, stable=True).indices[:k].tolist())


@pytest.mark.parametrize("levels", [2, 5, 10**6])
@pytest.mark.parametrize("k", [1, 3, 17])
def test_top_is_a_stable_sort(levels: int, k: int) -> None:
    """Few levels give many ties, which a plain topk breaks at will."""
    score = torch.randint(levels, (6, 17), generator=torch.Generator().manual_seed(k)).float()
    rows = [17 * index + position for index, row in enumerate(score) for position in by_sorting(row, k)]
    assert top_of_rows(score, k).tolist() == rows
    assert top(score.flatten(), k).tolist() == by_sorting(score.flatten(), k)
    parts = {"b": score[:1], "a": score[1:3], "c": score[3:]}
    offsets = {"b": 0, "a": 17, "c": 51}
    chosen = {name: (indices + offsets[name]).tolist() for name, indices in top_of_all(parts, k).items()}
    assert [*chosen["b"], *chosen["a"], *chosen["c"]] == by_sorting(score.flatten(), k)


def test_nothing_and_everything() -> None:
    score = torch.rand(5)
    assert top(score, 0).tolist() == []
    assert top(score, 5).tolist() == top(score, 9).tolist() == list(range(5))


def test_bit_patterns_have_the_order_of_the_values() -> None:
    values = torch.tensor([0.0, 1e-45, 1e-38, 0.1, 1.0, 1.0000001, 3e38])
    assert (bits(values).diff() > 0).all()
    assert int(bits(torch.tensor(-0.0))) == int(bits(torch.tensor(0.0)))
