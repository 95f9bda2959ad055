"""Rows of text files: JSON, JSONL, parquet, CSV, TSV and plain text, and tables of the Hugging Face hub."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.files import read_text
from datamodules.text_samples import Part

if TYPE_CHECKING:
    import datasets  # imported by its users, because the import takes a second that `--help` can do without

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")
LONGEST_CELL = 2**31 - 1  # characters; the reader of CSV allows 131,072 by itself


def read_part(file: Path, header: Sequence[str] | None = None, quoted: bool = True) -> Part:
    """Rows of a text file, by its suffix.

    Of ``.txt`` each line with text is a row with the column ``text``. A column that only some rows of a JSON file have
    is None in the others.

    Args:
        file: The file.
        header: Names of the columns of a CSV or TSV file without a line of names.
        quoted: Whether quotes in a CSV or TSV file enclose cells; otherwise they are part of the text.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its suffix is unknown, it cannot be read, or it has no rows.
    """
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file}: unknown kind of file; expected {', '.join(SUFFIXES)}")
    if file.suffix == ".parquet":
        part = read_parquet(file)
    elif file.suffix in (".csv", ".tsv"):
        part = read_cells(file, header, quoted)
    elif file.suffix == ".txt":
        lines = [(number, line) for number, line in enumerate(read_text(file).split("\n"), 1) if line.strip()]
        part = Part(str(file), "line", [number for number, _ in lines], {"text": [line.strip() for _, line in lines]})
    else:
        part = read_json(file)
    if not part.numbers:
        raise ValueError(f"{file} has no rows")
    return part


def read_json(file: Path) -> Part:
    """Rows of a file with one JSON object a line, or with one list of objects."""
    text = read_text(file)
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is no JSON: {error}") from error
        return in_columns(file, "row", list(enumerate(rows, 1)))
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number} is no JSON: {error}") from error
    return in_columns(file, "line", found)


def in_columns(file: Path, word: str, rows: list[tuple[int, Any]]) -> Part:
    """Part of numbered JSON objects."""
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{file}, {word} {number}: found {str(row)[:60]!r}; expected an object, {{...}}")
    names = dict.fromkeys(name for _, row in rows for name in row)
    columns = {name: [row.get(name) for _, row in rows] for name in names}
    return Part(str(file), word, [number for number, _ in rows], columns)


def read_parquet(file: Path) -> Part:
    """Rows of a parquet file."""
    from pyarrow import parquet

    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        table = parquet.read_table(file)
    except (ValueError, OSError) as error:  # pyarrow's own kinds are subclasses
        raise ValueError(f"{file} is no readable parquet file: {error}") from error
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return Part(str(file), "row", range(1, table.num_rows + 1), columns)


def read_cells(file: Path, header: Sequence[str] | None, quoted: bool) -> Part:
    """Rows of a CSV file, or of a TSV file by its suffix."""
    delimiter = "\t" if file.suffix == ".tsv" else ","
    lines = list(cells_of(file, delimiter, quoted))
    names = [name.strip() for name in header or (lines.pop(0)[1] if lines else [])]
    if len({*names}) < len(names):
        raise ValueError(f"{file}: expected each name of a column once, found {', '.join(names)}")
    for number, row in lines:
        if len(row) != len(names):
            raise ValueError(
                f"{file}, line {number}: {len(row)} cells; expected {len(names)}, as there are names of columns"
            )
    cells = zip(*(row for _, row in lines), strict=True) if lines else [()] * len(names)
    columns = {name: [cell.strip() for cell in column] for name, column in zip(names, cells, strict=True)}
    return Part(str(file), "line", [number for number, _ in lines], columns)


def cells_of(file: Path, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Cells of each line that is not empty, with its number; that of a cell with line breaks is of its last line."""
    text = read_text(file)
    if not quoted:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, line.rstrip("\r").split(delimiter)
        return
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}; quotes must enclose whole cells") from error
    finally:
        csv.field_size_limit(limit)


def read_hub(root: str, subset: str | None) -> "dict[str, datasets.Dataset]":
    """Tables of a dataset of the hub, by the names of their splits.

    Args:
        root: Name of the dataset.
        subset: Name of one of its configurations, if it has several.

    Raises:
        FileNotFoundError: If the hub does not give it.
    """
    import datasets

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", root) or root.startswith("."):
        raise FileNotFoundError(f"data.root={root!r}: no such file or folder")
    try:
        return dict(datasets.load_dataset(root, subset))
    except Exception as error:  # datasets has kinds of its own for a missing name, no network, a gated set
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"data.root={root!r}: no such file or folder, and the hub did not give it: {reason}"
        ) from error


def hub_part(name: str, table: "datasets.Dataset") -> Part:
    """Rows of a table of the hub; a class is its name, or None if it is not known."""
    import datasets

    columns: dict[str, list[Any]] = {}
    for column, feature in table.features.items():
        values = list(table[column])
        if isinstance(feature, datasets.ClassLabel):
            values = [None if value is None or value < 0 else feature.names[value] for value in values]
        columns[column] = values
    return Part(name, "row", range(1, len(table) + 1), columns)
