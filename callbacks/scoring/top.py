"""Positions of the largest scores, with ties broken by position."""

import torch
from torch import Tensor


def top_of_rows(score: Tensor, k: int) -> Tensor:
    """Flat indices, ascending, of the k largest entries of each row of a score (rows, columns); ties to the left."""
    k = min(k, score.shape[1])
    smallest = score.topk(k, dim=1).values[:, -1:]  # its value is certain, its place among equals is not
    above, equal = score > smallest, score == smallest
    places = k - above.sum(1, keepdim=True)
    return (above | (equal & (equal.cumsum(1) <= places))).flatten().nonzero().flatten()


def top(score: Tensor, k: int) -> Tensor:
    """Flat indices, ascending, of the k largest entries of a score (n,)."""
    return top_of_rows(score[None], k) if k else torch.empty(0, dtype=torch.long)


def top_of_all(scores: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    """Flat indices, ascending, of the k largest entries of all scores together, for each of them."""
    chosen = top(torch.cat([score.flatten() for score in scores.values()]), k)
    selection, start = {}, 0
    for name, score in scores.items():
        inside = (chosen >= start) & (chosen < start + score.numel())
        selection[name] = chosen[inside] - start
        start += score.numel()
    return selection


def largest(scores: list[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Find the largest values of several flat tensors, best first and equal ones in order.

    Floats that are not negative order as their bit patterns do. Counts of the upper 16 bits tell which few of the
    values need sorting, so the tensors are never concatenated, and integers sort faster.

    Returns:
        Positions in the concatenation of all (count,), and the indices of the tensors that hold them (count,).

    Raises:
        ValueError: If a value is negative, infinite or no number, or all are zero.
    """
    bounds = [score.aminmax() for score in scores if len(score)]
    for low, high in bounds:
        if not (low >= 0 and high < float("inf")):
            raise ValueError(f"scores from {float(low)} to {float(high)}: expected finite ones that are not negative")
    if not any(high > 0 for _, high in bounds):
        raise ValueError("every score is zero: the loss does not depend on the backbone, so nothing can be chosen")
    counts = torch.zeros(2**15, dtype=torch.int64)
    for score in scores:
        counts += torch.bincount(bits(score) >> 16, minlength=2**15)
    at_least = counts.flip(0).cumsum(0).flip(0)  # values with these upper bits or larger ones
    lowest = int((at_least >= count).nonzero().max()) << 16
    candidates, positions, offset = [], [], 0
    for score in scores:
        found = (bits(score) >= lowest).nonzero().view(-1)
        candidates.append(bits(score.index_select(0, found)))
        positions.append(found + offset)
        offset += len(score)
    owners = torch.arange(len(scores)).repeat_interleave(torch.tensor([len(found) for found in positions]))
    order = torch.cat(candidates).neg().sort(stable=True).indices[:count]
    return torch.cat(positions).index_select(0, order), owners.index_select(0, order)


def bits(values: Tensor) -> Tensor:
    """Bit patterns of fp32 values that are not negative, as integers of the same order; -0.0 is 0.0."""
    return values.view(torch.int32) & 0x7FFFFFFF
