"""Names and colours of the classes of published sets of masks, from the files of ``assets/classes``."""

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[1] / "assets/classes"


class Classes(NamedTuple):
    """Classes of masks, in the order of their numbers.

    Args:
        names: Name of each class.
        colours: Red, green and blue of each class, 0 to 255.
    """

    names: list[str]
    colours: list[tuple[int, int, int]]


def read_classes(name: str) -> Classes:
    """Classes of a file whose lines are ``RED GREEN BLUE NAME``; a name may hold spaces."""
    rows = [line.split(" ", 3) for line in (FOLDER / f"{name}.txt").read_text().splitlines()]
    return Classes([row[3] for row in rows], [(int(row[0]), int(row[1]), int(row[2])) for row in rows])
