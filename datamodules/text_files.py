"""Texts in files of a folder, or in a dataset of the Hugging Face hub: which file is which split, and held-out rows."""

import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import Split
from datamodules.files import neighbours
from datamodules.image_dataset import ALIASES
from datamodules.text_rows import SUFFIXES, hub_part, read_hub, read_part
from datamodules.text_samples import Part, Rows, Texts
from datamodules.texts import TextModule

INFO = "info.json"  # facts about the data that results record, such as the version of what they were made from


class TextFiles(TextModule):
    """Texts in files; a subclass turns rows into samples.

    Args:
        root: Folder of files named after their splits (``train.jsonl``, ``validation.parquet``, ``test.csv``), one
            file, or the name of a dataset of the Hugging Face hub. Files are ``.jsonl``, ``.json``, ``.parquet``,
            ``.csv``, ``.tsv`` or ``.txt``.
        train: File of the training rows in ``root``, or name of the split of a dataset of the hub; found by its usual
            names if not given.
        val: The same of the validation rows; ``none`` to train without them.
        test: The same of the test rows.
        subset: Name of the configuration of a dataset of the hub that has several.
        val_seed: Seed of the choice of the training rows that are held out if there are no validation rows.
    """

    held_option = "val_rows"  # option that ``held_out`` depends on, for messages

    def __init__(
        self,
        root: str,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        subset: str | None = None,
        val_seed: int = 42,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not root.strip():  # otherwise the folder from which the command was started
            raise ValueError(f"data.root={root!r}: expected a folder, a file or the name of a dataset of the hub")
        if val_seed < 0:
            raise ValueError(f"val_seed={val_seed}: expected at least 0")
        self.root, self.subset, self.val_seed = root, subset, val_seed
        self.names: dict[str, str | None] = {"train": train, "val": val, "test": test}
        self._rows: dict[str, Rows] | None = None
        self._samples: dict[str, Texts] | None = None

    @abstractmethod
    def samples_of_rows(self, rows: Rows) -> Texts:
        """Samples of all rows of a split.

        Raises:
            ValueError: If a column is missing, or a row has no text, with its file and number.
        """

    @abstractmethod
    def held_out(self, count: int) -> int:
        """Number of the training rows that are held out, of ``count``, if there are no validation rows."""

    def read(self, file: Path) -> Part:
        """Rows of a file."""
        return read_part(file)

    @property
    def rows(self) -> dict[str, Rows]:
        """Rows of every split that was found."""
        if self._rows is None:
            path = Path(self.root).expanduser()
            if path.exists():
                files = split_files(path, self.names)
                found = {split: [self.read(file) for file in parts] for split, parts in files.items()}
            else:
                near = neighbours(path)
                if near:
                    raise FileNotFoundError(f"data.root={self.root!r}: no such folder. Nearest: {', '.join(near)}")
                tables = read_hub(self.root, self.subset)
                names = split_names(self.root, list(tables), self.names)
                found = {s: [hub_part(f"{self.root} {name}", tables[name])] for s, name in names.items()}
            self._rows = {split: Rows(same_columns(parts)) for split, parts in found.items()}
        return self._rows

    def samples(self, split: Split) -> Texts | None:
        if self._samples is None:
            found = {name: self.samples_of_rows(rows) for name, rows in self.rows.items()}
            if "train" in found and "val" not in found and self.names["val"] != "none":
                found |= self.hold_out(found["train"])
            self._samples = found
        return self._samples.get(split)

    def hold_out(self, train: Texts) -> dict[str, Texts]:
        """Cut validation samples from the training samples, those that ``train_test_split`` of ``datasets`` chooses.

        Raises:
            ValueError: If none would be left to train on.
        """
        count = self.held_out(len(train))
        if not count:
            return {}
        if count >= len(train):
            raise ValueError(
                f"{self.root} has {len(train)} training rows and no validation rows, so that {count} rows cannot be "
                f"held out: pass a smaller --data.{self.held_option}, or --data.val none to train without a validation"
            )
        order = np.random.default_rng(self.val_seed).permutation(len(train)).tolist()
        return {"val": train.keep(order[:count]), "train": train.keep(order[count:])}

    def description(self) -> dict[str, Any]:
        info = info_of(Path(self.root).expanduser() / INFO)
        return super().description() | ({"data_info": info} if info else {})


def info_of(file: Path) -> Any:
    """Content of a file of facts; None if there is none that can be read, because a run does not depend on it."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def split_files(root: Path, names: Mapping[str, str | None]) -> dict[str, list[Path]]:
    """Files of each split.

    Args:
        root: Folder, or the one file of the training rows.
        names: Name of the file of each split; None to find it, ``none`` for no such split.

    Raises:
        FileNotFoundError: If a named file is missing.
        ValueError: If no file can be the training file.
    """
    if root.is_file():
        names = {split: name or "none" for split, name in names.items()} | {"train": root.name}
        root = root.parent
    files = sorted(file for file in root.iterdir() if file.suffix in SUFFIXES and file.name != INFO)
    found: dict[str, list[Path]] = {}
    for split, name in names.items():
        if name is None:
            usual = [file for file in files if re.sub(r"[-_.]\d+.*", "", file.stem).lower() in ALIASES[split]]
            kinds = {file.suffix for file in usual}
            if len(kinds) > 1:
                raise ValueError(
                    f"{root} has {', '.join(file.name for file in usual)}: which one is it? Pass --data.{split} NAME"
                )
            found |= {split: usual} if usual else {}
        elif name != "none":
            if not (root / name).is_file():
                listed = ", ".join(file.name for file in files[:10]) or "none"
                raise FileNotFoundError(f"data.{split}={name!r}: no such file in {root}; found {listed}")
            found[split] = [root / name]
    if not found and len(files) == 1 and names["train"] is None:
        return {"train": files}
    if not found:
        listed = ", ".join(file.name for file in files[:10]) or "no text file"
        raise ValueError(f"{root} has no train.jsonl, train.csv or the like: found {listed}. Pass --data.train NAME")
    return found


def split_names(root: str, known: Sequence[str], names: dict[str, str | None]) -> dict[str, str]:
    """Name of the split of a dataset of the hub for each split of a run.

    Raises:
        ValueError: If a name is unknown, or there is no training split.
    """
    found = {}
    for split, name in names.items():
        if name is not None and name not in known and name != "none":
            raise ValueError(f"data.{split}={name!r}: {root} has the splits {', '.join(known)}")
        name = name or next((key for key in known if key.lower() in ALIASES[split]), None)
        if name is not None and name != "none":
            found[split] = name
    if not found:
        raise ValueError(f"{root} has no train split: found {', '.join(known)}. Pass --data.train NAME")
    return found


def same_columns(parts: list[Part]) -> list[Part]:
    """Parts of one split with the columns of all; a column that a part lacks is None in its rows."""
    names = dict.fromkeys(name for part in parts for name in part.columns)
    full = [{name: part.columns.get(name, [None] * len(part.numbers)) for name in names} for part in parts]
    return [part._replace(columns=columns) for part, columns in zip(parts, full, strict=True)]


def column_of(rows: Rows, name: str, option: str) -> list[Any]:
    """Values of a column.

    Args:
        rows: Rows of a split.
        name: Name of the column.
        option: Option that names it.

    Raises:
        ValueError: If there is no such column, with those that there are.
    """
    if name not in rows.columns:
        found = ", ".join(rows.columns)
        raise ValueError(f"{rows.source} has no column {name!r}: found {found}; pass --data.{option}")
    return rows.columns[name]


def texts_of(rows: Rows, name: str, option: str, empty: bool = False) -> list[str]:
    """Texts of a column.

    Args:
        rows: Rows of a split.
        name: Name of the column.
        option: Option that names it.
        empty: Whether a text may be empty; None counts as empty.

    Raises:
        ValueError: If a value is no text, or an empty one, with its file and number.
    """
    texts = []
    for row, value in enumerate(column_of(rows, name, option)):
        text = "" if value is None else value
        if not isinstance(text, str):
            raise ValueError(f"{rows.place(row)}: {name} is {str(value)[:60]!r}; expected a text")
        if not empty and not text.strip():
            raise ValueError(f"{rows.place(row)}: {name} is empty; take the row out, or give it a text")
        texts.append(text)
    return texts
