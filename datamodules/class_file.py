"""Images whose class stands in a CSV file."""

import re
from typing import Any

import torch
from torch import Tensor

from datamodules.label_files import LabelFiles, Table
from datamodules.labelled_images import LabelledImages


class ClassFile(LabelFiles, LabelledImages):
    """Images of classes, for ``--task classification``: ``train.csv`` with the columns ``path`` and ``label``.

    Classes are words, in the order of the alphabet, or numbers; those of all files count.

    Args:
        label_column: Name of the column of classes.
    """

    def __init__(self, label_column: str = "label", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.label_column = label_column
        self._names: list[str] | None = None

    @property
    def class_names(self) -> list[str]:
        if self._names is None:
            self._names = names_of([(table, self.cells(table)) for table in self.tables.values()])
        return self._names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def cells(self, table: Table) -> list[str]:
        return table.column(self.label_column, "label_column")

    def targets_of(self, table: Table) -> Tensor:
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return torch.tensor([numbers[cell] for cell in self.cells(table)])


def names_of(tables: list[tuple[Table, list[str]]]) -> list[str]:
    """Names of the classes of all tables, words by the alphabet and numbers by their size.

    Args:
        tables: Each table with the cells of its classes.

    Raises:
        ValueError: If a cell is empty, words and numbers are mixed, or there are fewer than two classes.
    """
    first: dict[bool, tuple[Table, int, str]] = {}  # of the numbers (True) and of the words
    for table, cells in tables:
        for row, cell in enumerate(cells):
            if not cell:
                raise table.wrong(row, cell, "a class")
            first.setdefault(bool(re.fullmatch(r"-?\d+", cell)), (table, row, cell))
    if len(first) == 2:
        table, row, word = first[False]
        number = first[True]
        raise table.wrong(row, word, f"a number, as {number[2]!r} in line {number[1] + 2} of {number[0].file.name}")
    names = sorted({cell for _, cells in tables for cell in cells}, key=int if True in first else None)
    if len(names) < 2:
        raise ValueError(f"{tables[0][0].file}: all images have the class {names[0]!r}; expected at least 2 classes")
    return names
