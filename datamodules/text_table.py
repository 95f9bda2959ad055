"""Texts with their classes or numbers in CSV, TSV, JSON, JSONL or parquet files, or in a dataset of the hub."""

import math
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.base import Split
from datamodules.classified_texts import ClassifiedTexts
from datamodules.text_files import TextFiles, column_of, texts_of
from datamodules.text_rows import read_part
from datamodules.text_samples import LabelledTexts, Part, Rows

WHOLE = re.compile(r"[-+]?\d+")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class TextTable(TextFiles, ClassifiedTexts):
    """Rows with a text, or a pair of texts, and a label.

    It is for ``--task text_classification``, and with numbers for ``--task text_regression``.

    Classes are words, in the order of the alphabet, or whole numbers, in theirs; those of all splits count.

    Args:
        text_columns: Name of the column of texts, or of both columns of pairs.
        label_column: Name of the column of labels.
        label_type: Meaning of the labels. ``class``: classes. ``number``: numbers, for a regression. ``auto``: numbers
            if a label has a fraction, otherwise classes.
        quoted: Whether quotes in CSV and TSV files enclose cells; otherwise they are part of the text.
        val_fraction: Share of the training rows that is held out if there are no validation rows.
    """

    held_option = "val_fraction"

    def __init__(
        self,
        root: str,
        text_columns: list[str] = ["text"],  # noqa: B006 (copied below)
        label_column: str = "label",
        label_type: Literal["auto", "class", "number"] = "auto",
        quoted: bool = True,
        val_fraction: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        if len(text_columns) not in (1, 2):
            raise ValueError(f"text_columns={text_columns}: expected the name of one column, or of two for pairs")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction}: expected a share of at least 0 and below 1")
        self.text_columns, self.label_column, self.label_type = list(text_columns), label_column, label_type
        self.quoted, self.val_fraction = quoted, val_fraction
        self._names: list[str] | None = None

    def read(self, file: Path) -> Part:
        return read_part(file, quoted=self.quoted)

    def held_out(self, count: int) -> int:
        return round(count * self.val_fraction) if self.val_fraction else 0

    @property
    def class_names(self) -> list[str]:
        if self._names is None:
            cells = {split: self.cells(rows) for split, rows in self.rows.items()}
            self._names = [] if self.has_numbers(cells) else self.names_of(cells)
        return self._names

    @property
    def target_names(self) -> list[str]:
        return [self.label_column]

    def cells(self, rows: Rows) -> list[str]:
        """Labels of rows as texts.

        Raises:
            ValueError: If a row has none, with its file and number.
        """
        cells = []
        for row, value in enumerate(column_of(rows, self.label_column, "label_column")):
            cell = "" if value is None else str(value).strip()
            if not cell or not isinstance(value, (str, int, float)):
                raise self.wrong(rows, row, value, "a class or a number")
            cells.append(cell)
        return cells

    def wrong(self, rows: Rows, row: int, value: Any, expected: str) -> ValueError:
        """Error about a label, with its file and number."""
        return ValueError(f"{rows.place(row)}: {self.label_column} is {str(value)[:60]!r}; expected {expected}")

    def has_numbers(self, cells: dict[str, list[str]]) -> bool:
        """Whether the labels are numbers of a regression."""
        if self.label_type != "auto":
            return self.label_type == "number"
        every = [cell for part in cells.values() for cell in part]
        return all(map(NUMBER.fullmatch, every)) and not all(map(WHOLE.fullmatch, every))

    def names_of(self, cells: dict[str, list[str]]) -> list[str]:
        """Names of the classes of all splits.

        Raises:
            ValueError: If there are fewer than two, or whole numbers beside words.
        """
        whole = {bool(WHOLE.fullmatch(cell)) for part in cells.values() for cell in part}
        if len(whole) == 2:
            split, row = next((s, i) for s, part in cells.items() for i, c in enumerate(part) if not WHOLE.fullmatch(c))
            raise self.wrong(self.rows[split], row, cells[split][row], "a whole number, as other rows have")
        names = sorted({cell for part in cells.values() for cell in part}, key=int if whole == {True} else None)
        if len(names) < 2:
            raise ValueError(f"{self.root}: all texts have the class {names[0]!r}; expected at least 2 classes")
        return names

    def labels_of(self, rows: Rows) -> Tensor:
        """Classes (N,), int64, or numbers (N,), fp32, of rows."""
        cells = self.cells(rows)
        if self.class_names:
            numbers = {name: number for number, name in enumerate(self.class_names)}
            return torch.tensor([numbers[cell] for cell in cells])
        for row, cell in enumerate(cells):
            if not NUMBER.fullmatch(cell) or not math.isfinite(float(cell)):
                raise self.wrong(rows, row, cell, "a number")
        return torch.tensor([float(cell) for cell in cells])

    def samples_of_rows(self, rows: Rows) -> LabelledTexts:
        first, *second = (texts_of(rows, name, "text_columns") for name in self.text_columns)
        pairs = list(zip(first, second[0] if second else [""] * len(rows), strict=True))
        return LabelledTexts(rows, pairs, self.labels_of(rows))

    def samples(self, split: Split) -> LabelledTexts | None:
        samples = super().samples(split)
        assert samples is None or isinstance(samples, LabelledTexts)
        return samples
