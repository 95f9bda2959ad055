"""Texts as stored: rows of files, and the samples that are made of them."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from datamodules.samples import Labelled, Samples


class Part(NamedTuple):
    """Rows that come from one file or one split of the hub.

    Args:
        source: The file, or the name of the dataset with its split.
        word: What a number counts: ``line`` or ``row``.
        numbers: Number of each row in its source, from 1.
        columns: Values of each column by its name.
    """

    source: str
    word: str
    numbers: Sequence[int]
    columns: dict[str, list[Any]]


class Rows:
    """Rows of one split, from one or several files.

    Args:
        parts: Rows of each file; all have the same columns.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.places = [(part.source, part.word, part.numbers) for part in parts]
        self.starts = [0]
        for part in parts:
            self.starts.append(self.starts[-1] + len(part.numbers))
        self.columns: dict[str, list[Any]] = {
            name: [value for part in parts for value in part.columns[name]] for name in parts[0].columns
        }

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def source(self) -> str:
        """First file, for messages about all rows."""
        return self.places[0][0]

    def place(self, row: int) -> str:
        """File and number of a row, for messages."""
        number = bisect_right(self.starts, row) - 1
        source, word, numbers = self.places[number]
        return f"{source}, {word} {numbers[row - self.starts[number]]}"


class Text(NamedTuple):
    """A text as stored.

    Args:
        first: Prompt of the text, or the first text of a pair.
        second: The text behind the prompt, or the second text of a pair; empty if there is none.
        target: Class or number; None if the text is its own target.
    """

    first: str
    second: str
    target: Any = None


class Texts(Samples):
    """Samples that are texts without another target.

    Args:
        rows: Rows that the texts come from, for messages.
        pairs: First and second text of each row; see ``Text``.
        indices: Row of each sample; all rows in their order if not given.
    """

    def __init__(self, rows: Rows, pairs: Sequence[tuple[str, str]], indices: list[int] | None = None) -> None:
        self.rows, self.pairs = rows, pairs
        self.indices = list(range(len(pairs))) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Text:
        return Text(*self.pairs[self.indices[index]], self.target(index))

    def target(self, index: int) -> Any:
        return None

    def stored(self, index: int) -> bytes:
        return repr(tuple(self[index])).encode()

    def name(self, index: int) -> str:
        return self.rows.place(self.indices[index])

    def keep(self, indices: list[int]) -> "Texts":
        return Texts(self.rows, self.pairs, [self.indices[index] for index in indices])


class LabelledTexts(Labelled, Texts):
    """Texts with a class or a number.

    Args:
        rows: Rows that the texts come from, for messages.
        pairs: First and second text of each row.
        labels: Class of each sample (N,), int64, or its number, fp32.
        indices: Row of each sample; all rows in their order if not given.
    """

    def __init__(
        self, rows: Rows, pairs: Sequence[tuple[str, str]], labels: Tensor, indices: list[int] | None = None
    ) -> None:
        Texts.__init__(self, rows, pairs, indices)
        self.labels = labels

    def target(self, index: int) -> Any:
        return self.labels[index].item()

    def keep(self, indices: list[int]) -> "LabelledTexts":
        return LabelledTexts(self.rows, self.pairs, self.labels[indices], [self.indices[index] for index in indices])
