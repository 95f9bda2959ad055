"""Names and colours of published classes."""

import pytest

from datamodules.class_lists import read_classes


@pytest.mark.parametrize(
    ("name", "count", "first", "last"), [("ade20k", 150, "wall", "flag"), ("coco_stuff", 171, "person", "wood")]
)
def test_classes(name: str, count: int, first: str, last: str) -> None:
    names, colours = read_classes(name)
    assert (len(names), len({*names}), len(colours)) == (count, count, count)
    assert (names[0], names[-1]) == (first, last)
    assert all(0 <= value <= 255 for colour in colours for value in colour)


def test_names_with_spaces() -> None:
    names, colours = read_classes("ade20k")
    place = names.index("swimming pool")
    assert (place, colours[place]) == (109, (0, 184, 255))
