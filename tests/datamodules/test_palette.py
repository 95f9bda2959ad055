"""Colours of classes."""

from datamodules.palette import palette


def test_colours_of_pascal_voc() -> None:
    colours = palette()
    rows = [tuple(colours[3 * number : 3 * number + 3]) for number in range(256)]
    assert rows[:5] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert rows[20] == (0, 64, 128)
    assert rows[255] == (224, 224, 192)
    assert len(set(rows)) == 256
