"""Images whose numbers stand in a CSV file."""

import math
from typing import Any

import torch
from torch import Tensor

from datamodules.label_files import LabelFiles, Table


class NumberFile(LabelFiles):
    """Images with numbers, for ``--task regression``: ``train.csv`` with ``path`` and one or more columns of numbers.

    Args:
        label_columns: Names of the columns of numbers.
    """

    targets = "numbers"

    def __init__(self, label_columns: list[str] = ["target"], **kwargs: Any) -> None:  # noqa: B006 (copied below)
        super().__init__(**kwargs)
        if not label_columns:
            raise ValueError("label_columns: expected the name of at least one column of numbers")
        self.target_names = list(label_columns)

    @property
    def num_targets(self) -> int:
        """Numbers of each image."""
        return len(self.target_names)

    def targets_of(self, table: Table) -> Tensor:
        columns = [table.column(name, "label_columns") for name in self.target_names]
        return torch.tensor([[number(table, row, cell) for row, cell in enumerate(c)] for c in columns]).T.contiguous()

    def target_key(self, samples: Any) -> Any:
        return samples.labels.tolist()


def number(table: Table, row: int, cell: str) -> float:
    """Number of a cell.

    Raises:
        ValueError: If it is none, or not finite.
    """
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise table.wrong(row, cell, "a number")
    return value
