"""Positions of the largest scores; ties go to the lower position."""

import torch
from torch import Tensor


def top_of_rows(score: Tensor, k: int) -> Tensor:
    """Flat indices, ascending, of the k largest entries of each row of a score (rows, columns)."""
    k = min(k, score.shape[1])
    # topk breaks ties arbitrarily, so only its smallest value is used, as a threshold for the positions
    smallest = score.topk(k, dim=1).values[:, -1:]
    above, equal = score > smallest, score == smallest
    places = k - above.sum(1, keepdim=True)
    return (above | (equal & (equal.cumsum(1) <= places))).flatten().nonzero().flatten()


def top(score: Tensor, k: int) -> Tensor:
    """Flat indices, ascending, of the k largest entries of a score (n,)."""
    return top_of_rows(score[None], k) if k else torch.empty(0, dtype=torch.long, device=score.device)


def top_of_all(scores: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    """Flat indices, ascending, of the k largest entries of all scores together, by name."""
    chosen = top(torch.cat([score.flatten() for score in scores.values()]), k)
    selection, start = {}, 0
    for name, score in scores.items():
        inside = (chosen >= start) & (chosen < start + score.numel())
        selection[name] = chosen[inside] - start
        start += score.numel()
    return selection


def largest(scores: list[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Find the largest values of several flat tensors, in descending order; equal values keep their order.

    Non-negative floats have the same order as their bit patterns. A histogram of the upper 16 bits shows which values
    need sorting, so that only these are sorted, as integers, and the tensors are never concatenated.

    Returns:
        Positions (count,) in the concatenation of all tensors, and for each the index (count,) of its tensor.

    Raises:
        ValueError: If a value is negative, infinite or NaN, or all values are zero.
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
    at_least = counts.flip(0).cumsum(0).flip(0)  # number of values with at least these upper bits
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
    """Bit patterns of non-negative fp32 values, as integers of the same order; -0.0 counts as 0.0."""
    return values.view(torch.int32) & 0x7FFFFFFF
