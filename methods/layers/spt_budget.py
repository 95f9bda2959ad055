"""SPT's choice of entries and modules for a budget of trained parameters (arXiv:2303.08566)."""

from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from callbacks.scoring.top import largest

Granularity = Literal["both", "structured_only", "unstructured_only"]

STEPS = 79  # tried numbers of marked entries, in steps of 0.02 units


class Part(NamedTuple):
    """Compared tensor: a parameter, or the rows of q, k or v of a fused qkv parameter."""

    name: str
    """Name of the part, such as ``blocks.0.attn.q.weight``."""
    parameter: str
    """Name of its parameter, such as ``blocks.0.attn.qkv.weight``."""
    start: int
    """First flat position of the part in its parameter."""
    size: int
    """Number of its entries."""
    vector: bool
    """Whether it is a vector, which can train as a whole."""
    module: int
    """Parameters of the module that a matrix can get; 0 if it cannot get one."""


@dataclass(frozen=True)
class Sweep:
    """For each number of marked entries (a step): which modules, vectors and entries train.

    Args:
        parts: The pool, in order.
        marks: Tried numbers of marked entries, ascending.
        positions: Positions in the pool of the most sensitive entries, best first.
        owners: Index of the part of each position.
        dense: Bool (steps, parts): True for a matrix with a module and for a vector that trains as a whole.
        unstructured: Number of trained single entries (steps,).
        structured: Number of parameters of modules and whole vectors (steps,).
        single: Whether single entries train.
        extra: Number of parameters that always train.
        unit: Number of parameters in one unit of the budget.
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
        """Number of trained parameters at a step, without the head."""
        return int(self.unstructured[step] + self.structured[step]) + self.extra

    def step_for_budget(self, budget: float) -> int:
        """Step whose number of parameters is closest to a budget; of two equally close steps the later one.

        Raises:
            ValueError: If the budget is larger than the pool, or every step trains more than twice the budget.
        """
        pool = sum(part.size for part in self.parts)
        if not self.extra < budget * self.unit <= pool:
            raise ValueError(
                f"a budget of {budget * self.unit:,.0f} parameters cannot be met: expected more than {self.extra} "
                f"(the class token trains in any case) and at most the pool of {pool:,}; change spt_budget"
            )
        # as in the original, a step must be at least as close to the budget as 0 parameters
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
        """Matrices that get a module, and vectors that train as a whole."""
        return [part for part, dense in zip(self.parts, self.dense[step].tolist(), strict=True) if dense]

    def entries(self, step: int) -> dict[Part, Tensor]:
        """Ascending flat positions of the marked entries of all other parts, inside each part."""
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
    """Mark the 0.02, 0.04, ..., 1.58 units of most sensitive entries, and find which parts train at each step.

    Args:
        parts: The pool, in order.
        scores: Sensitivity of each part, flat, fp32 and not negative.
        alpha: A matrix gets a module if it has at least ``module / alpha`` marked entries.
        beta: A vector trains as a whole if it has at least ``size / beta`` marked entries.
        extra: Number of parameters that always train.
        unit: Number of parameters in one unit of the budget.
        granularity: Trained parts; see ``spt_granularity`` of ``SPT``.
    """
    pool = sum(part.size for part in parts)
    marks = [ceil(step * 0.02 * unit) for step in range(1, STEPS + 1)]
    marks = [count for count in marks if count <= pool]
    positions, owners = largest(scores, marks[-1] if marks else 0)
    # a part keeps the marks of earlier steps, so counts are cumulative
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
