"""Images whose targets stand in a CSV file: one class, tags or numbers."""

import csv
import io
from abc import abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from datamodules.base import Split
from datamodules.files import Files, existing, listed, read_text
from datamodules.image_module import ImageModule

IMAGES = ("path", "image", "file", "filename", "file_name", "image_path")  # usual names of the column of images


class Table(NamedTuple):
    """Rows of a CSV file.

    Args:
        file: The file, for messages.
        columns: Cells of each column by its name; without the first line, which holds the names.
    """

    file: Path
    columns: dict[str, list[str]]

    def column(self, name: str, option: str) -> list[str]:
        """Cells of a column.

        Args:
            name: Name of the column.
            option: Option that names it.

        Raises:
            ValueError: If there is no such column, with those that there are.
        """
        if name not in self.columns:
            raise ValueError(
                f"{self.file} has no column {name!r}: found {', '.join(self.columns)}; pass --data.{option}"
            )
        return self.columns[name]

    def wrong(self, row: int, found: str, expected: str) -> ValueError:
        """Error about a cell, with its line."""
        return ValueError(f"{self.file}, line {row + 2}: found {found!r}; expected {expected}")


def read_table(file: Path) -> Table:
    """Table of a CSV file, or of a TSV file by its suffix.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no rows, a name of a column twice, or a line with more or fewer cells than names.
    """
    delimiter = "\t" if file.suffix == ".tsv" else ","
    lines = [row for row in csv.reader(io.StringIO(read_text(file), newline=""), delimiter=delimiter) if row]
    if len(lines) < 2:
        raise ValueError(f"{file}: expected names of columns in the first line, and a line for each image")
    names = [name.strip() for name in lines[0]]
    if len({*names}) < len(names):
        raise ValueError(f"{file}: expected each name of a column once, found {', '.join(names)}")
    for number, row in enumerate(lines[1:], 2):
        if len(row) != len(names):
            raise ValueError(f"{file}, line {number}: {len(row)} cells; expected {len(names)}, as in the first line")
    cells = zip(*lines[1:], strict=True)
    return Table(file, {name: [cell.strip() for cell in column] for name, column in zip(names, cells, strict=True)})


class LabelFiles(ImageModule):
    """Images and the CSV files of their targets; a subclass reads the targets.

    Args:
        root: Folder of the CSV files, from which the paths in them start.
        train_file: File of the training images: a line with the names of the columns, then one line for each image. The
            suffix ``.tsv`` means tabs in the place of commas.
        val_file: File of the validation images; without it the last epoch counts.
        test_file: File of the test images.
        image_column: Name of the column of paths; by default one of path, image, file, filename, file_name, image_path.
    """

    def __init__(
        self,
        root: str,
        train_file: str = "train.csv",
        val_file: str = "val.csv",
        test_file: str = "test.csv",
        image_column: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.home, self.image_column = root, existing(root), image_column
        self.files = {"train": train_file, "val": val_file, "test": test_file}
        self._tables: dict[str, Table] | None = None

    @property
    def tables(self) -> dict[str, Table]:
        """Table of each split that has a file; the training split must have one."""
        if self._tables is None:
            places = {split: self.home / name for split, name in self.files.items()}
            self._tables = {s: read_table(file) for s, file in places.items() if s == "train" or file.is_file()}
        return self._tables

    def paths(self, table: Table) -> list[str]:
        """Path of each image of a table."""
        usual = next((name for name in IMAGES if name in table.columns), "path")
        paths = table.column(self.image_column or usual, "image_column")
        for row, path in enumerate(paths):
            if not path:
                raise table.wrong(row, path, "the path of an image")
        return paths

    @abstractmethod
    def targets_of(self, table: Table) -> Tensor:
        """Targets of the images of a table: classes (N,), int64, or tags or numbers (N, K), fp32.

        Raises:
            ValueError: If a column is missing or a cell is no such target.
        """

    def samples(self, split: Split) -> Files | None:
        if split not in self.tables:
            return None
        table = self.tables[split]
        targets = self.targets_of(table)
        files = listed(table.file, self.home, [(path, 0) for path in self.paths(table)])
        files.labels = targets
        return files if targets.dim() == 1 else ValuedFiles(files.root, files.paths, targets)


class ValuedFiles(Files):
    """Image files with tags or numbers.

    Args:
        root: Folder that the paths start from.
        paths: Path of each file below it.
        values: Tags, 0 or 1, or numbers of each file (N, K), fp32.
    """

    def __init__(self, root: Path, paths: Any, values: Tensor) -> None:
        super().__init__(root, paths, [])
        self.labels = values

    def target(self, index: int) -> Any:
        """Values (K,) of a file."""
        return self.labels[index]

    def stored(self, index: int) -> bytes:
        content = self.content(index)
        return f"{self.labels[index].tolist()} {len(content)} ".encode() + content

    def keep(self, indices: list[int]) -> "ValuedFiles":
        return ValuedFiles(self.root, [self.paths[i] for i in indices], self.labels[indices])
