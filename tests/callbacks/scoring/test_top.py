"""Positions of the largest scores, with ties to the left."""

import torch

from callbacks.scoring.top import largest, top_of_rows


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
