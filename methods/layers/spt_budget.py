"""SPT's choice among all parameters at once: the most sensitive entries, and where a whole module takes their place."""

from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from callbacks.scoring.top import largest

Granularity = Literal["both", "structured_only", "unstructured_only"]

STEPS = 79  # numbers of marks that are tried, in steps of 0.02 units


class Part(NamedTuple):
    """A tensor as the paper counts them: a parameter, or the rows of q, k or v in a fused one."""

    name: str
    """Name with q, k and v apart, ``blocks.0.attn.q.weight``."""
    parameter: str
    """Name of the real parameter, ``blocks.0.attn.qkv.weight``."""
    start: int
    """First of its flat positions in the real parameter."""
    size: int
    vector: bool
    """Whether it can train as a whole."""
    module: int
    """Parameters of the module that can take the place of a matrix, 0 if none can."""


@dataclass(frozen=True)
class Sweep:
    """What would train at each number of marks.

    Args:
        parts: The pool, in order.
        marks: Numbers of marks tried, ascending.
        positions: Pool positions of the most sensitive entries, best first.
        owners: Index of the part of each position.
        dense: Whether a part is replaced by a module, or trains as a whole (marks, parts).
        unstructured: Single entries that train (marks,).
        structured: Parameters of modules and whole vectors (marks,).
        single: Whether single entries train at all.
        extra: Parameters that train in any case.
        unit: What budgets are counted in.
    """

    parts: list[Part]
    marks: list[int]
    positions: Tensor
    owners: Tensor
    dense: Tensor
    unstructured: Tensor
    structured: Tensor
    single: bool
    extra: int
    unit: float

    def params(self, step: int) -> int:
        """Parameters that train at a step, without the head."""
        return int(self.unstructured[step] + self.structured[step]) + self.extra

    def step_for_budget(self, budget: float) -> int:
        """The step that comes closest to a budget; of two equally close ones, the one with more marks.

        Raises:
            ValueError: If the budget is larger than the pool, or every step trains more than twice of it.
        """
        pool = sum(part.size for part in self.parts)
        if not self.extra < budget * self.unit <= pool:
            raise ValueError(
                f"a budget of {budget * self.unit:,.0f} parameters cannot be met: expected more than {self.extra} "
                f"(the class token trains in any case) and at most the pool of {pool:,}; change spt_budget"
            )
        # as the original: nothing is chosen before it is closer than training nothing at all
        best, chosen = 0.0, None
        for step in range(len(self.marks)):
            total = self.params(step) / self.unit
            if abs(total - budget) <= abs(best - budget):
                best, chosen = total, step
        if chosen is None:
            smallest = f"the smallest choice trains {self.params(0):,}" if self.marks else "the pool is too small"
            raise ValueError(
                f"a budget of {budget * self.unit:,.0f} parameters cannot be met: {smallest} "
                f"({0.02 * self.unit:,.0f} marks); raise spt_budget"
            )
        return chosen

    def dense_parts(self, step: int) -> list[Part]:
        """The matrices that get a module and the vectors that train as a whole."""
        return [part for part, dense in zip(self.parts, self.dense[step].tolist(), strict=True) if dense]

    def entries(self, step: int) -> dict[Part, Tensor]:
        """Ascending flat positions, inside the part, of the marks of all other parts that have any."""
        count = self.marks[step] if self.single else 0
        sparse = ~self.dense[step][self.owners[:count]]
        positions = self.positions[:count][sparse].sort().values
        sizes = torch.bincount(self.owners[:count][sparse], minlength=len(self.parts)).tolist()
        starts = accumulate((part.size for part in self.parts), initial=0)
        pieces = zip(self.parts, starts, positions.split(sizes), strict=False)
        return {part: piece - start for part, start, piece in pieces if len(piece)}


def sweep(
    parts: list[Part],
    scores: list[Tensor],
    alpha: float = 10.0,
    beta: float = 5.0,
    extra: int = 0,
    unit: float = 1e6,
    granularity: Granularity = "both",
) -> Sweep:
    """Find what would train with the 0.02, 0.04, ..., 1.58 units of most sensitive entries marked.

    Args:
        parts: The pool, in order.
        scores: Sensitivity of each part, flat, fp32 and not negative.
        alpha: A matrix gets its module from ``module / alpha`` marks on.
        beta: A vector trains as a whole from ``size / beta`` marks on.
        extra: Parameters that train in any case.
        unit: What budgets are counted in.
        granularity: Whether single entries, modules and whole vectors, or both train.
    """
    pool = sum(part.size for part in parts)
    marks = [ceil(step * 0.02 * unit) for step in range(1, STEPS + 1)]
    marks = [count for count in marks if count <= pool]
    positions, owners = largest(scores, marks[-1] if marks else 0)
    # the marks of a part at a step are those of all steps before and the new ones
    new = torch.tensor(marks, dtype=torch.int64).diff(prepend=torch.zeros(1, dtype=torch.int64))
    cells = torch.arange(len(marks)).repeat_interleave(new) * len(parts) + owners
    counts = torch.bincount(cells, minlength=len(marks) * len(parts)).view(len(marks), len(parts)).cumsum(0)

    costs = torch.tensor([part.size if part.vector else part.module for part in parts])
    thresholds = [part.size / beta if part.vector else part.module / alpha for part in parts]
    dense = (counts > 0) & (counts >= torch.tensor(thresholds, dtype=torch.float64)) & (costs > 0)
    if granularity == "unstructured_only":
        dense = torch.zeros_like(dense)
    single = granularity != "structured_only"
    unstructured = (counts * ~dense).sum(1) * single
    return Sweep(parts, marks, positions, owners, dense, unstructured, (dense * costs).sum(1), single, extra, unit)
