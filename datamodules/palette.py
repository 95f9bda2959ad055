"""Colours of classes in masks."""

CLASSES = 256


def palette() -> list[int]:
    """Red, green and blue of 256 numbers, one after the other: the colours of PASCAL VOC, black for 0.

    Three bits of a number give the highest bits of the three colours, the next three bits the next ones, and so on.
    """
    colours = []
    for number in range(CLASSES):
        for channel in range(3):
            bits = (number >> (3 * place + channel) & 1 for place in range(3))
            colours.append(sum(bit << (7 - place) for place, bit in enumerate(bits)))
    return colours
