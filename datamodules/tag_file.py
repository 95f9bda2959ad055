"""Images whose tags stand in a CSV file."""

from typing import Any

import torch
from torch import Tensor

from datamodules.label_files import LabelFiles, Table
from datamodules.samples import Samples

VALUES = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}


class TagFile(LabelFiles):
    """Images with any number of tags, for ``--task multi_label``: ``train.csv`` with ``path`` and columns of tags.

    Args:
        label_columns: One column whose cells hold the tags of an image, as in ``dog|grass``, an empty one for none; or
            a column for each tag, with 0 and 1, false and true.
        separator: Text between two tags of a cell.
    """

    targets = "tags"

    def __init__(self, label_columns: list[str] = ["tags"], separator: str = "|", **kwargs: Any) -> None:  # noqa: B006
        super().__init__(**kwargs)
        if not label_columns or not separator:
            raise ValueError("label_columns and separator: expected the name of a column and a text between two tags")
        self.label_columns, self.separator = list(label_columns), separator
        self._names: list[str] | None = None

    @property
    def class_names(self) -> list[str]:
        """Name of each tag, those of all files."""
        if len(self.label_columns) > 1:
            return self.label_columns
        if self._names is None:
            cells = [cell for table in self.tables.values() for cell in self.cells(table)]
            self._names = sorted({tag for cell in cells for tag in cell})
            if not self._names:
                raise ValueError(f"{self.tables['train'].file}: no image has a tag in {self.label_columns[0]!r}")
        return self._names

    @property
    def num_classes(self) -> int:
        """Number of tags."""
        return len(self.class_names)

    def cells(self, table: Table) -> list[list[str]]:
        """Tags of each image of a table with one column of tags."""
        column = table.column(self.label_columns[0], "label_columns")
        return [[tag.strip() for tag in cell.split(self.separator) if tag.strip()] for cell in column]

    def targets_of(self, table: Table) -> Tensor:
        if len(self.label_columns) == 1:
            rows = [[float(name in cell) for name in self.class_names] for cell in map(set, self.cells(table))]
            return torch.tensor(rows)
        columns = [table.column(name, "label_columns") for name in self.label_columns]
        for column in columns:
            for row, cell in enumerate(column):
                if cell.lower() not in VALUES:
                    raise table.wrong(row, cell, "0 or 1, false or true")
        return torch.tensor([[VALUES[cell.lower()] for cell in column] for column in columns]).T.contiguous()

    def check_samples(self, split: str, samples: Samples) -> None:
        """Print a note about tags without a training image as well."""
        super().check_samples(split, samples)
        targets: Any = samples
        missing = int((targets.labels == 0).all(0).sum())
        if split == "train" and missing:
            print(f"note: {missing} of {self.num_classes} tags have no training image")

    def target_key(self, samples: Any) -> Any:
        return samples.labels.tolist()
