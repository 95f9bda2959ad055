"""Objects in images as stored."""

from collections import Counter
from typing import Any

import pytest
import torch

from datamodules.objects import Objects, boxes_from_corner, flaw, learnable, masks_of

SIZE = (20, 30)  # height and width
SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]


def objects(*boxes: list[float], crowd: tuple[bool, ...] | None = None, shapes: Any = None) -> Objects:
    """Objects of class 1 by left, top, width and height."""
    count = len(boxes)
    crowds = torch.tensor(crowd or (False,) * count, dtype=torch.bool)
    labels, area = torch.ones(count, dtype=torch.long), torch.zeros(count)
    return Objects(boxes_from_corner(boxes), labels, crowds, area, shapes or [[[0]]] * count)


def test_boxes_from_corner() -> None:
    assert boxes_from_corner([[1, 2, 3, 4]]).tolist() == [[1, 2, 4, 6]]
    assert boxes_from_corner([]).shape == (0, 4)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([1, 1, 5, 5], ""),
        ([25, 1, 10, 5], ""),  # partly outside
        ([1, 1, 0, 5], ""),  # a thin box is left out, not refused
        ([30, 1, 5, 5], r"its box [30, 1, 35, 6] (left, top, right, bottom) lies outside 30 x 20 pixels"),
        ([-8, 1, 5, 5], "lies outside"),
        ([5, 5, -2, 5], "has a negative side"),
        ([float("nan"), 1, 5, 5], "is not finite"),
    ],
)
def test_flaws(box: list[float], reason: str) -> None:
    found = flaw(objects(box), SIZE, masks=False)
    assert reason in found
    assert bool(found) == bool(reason)


def test_missing_shapes() -> None:
    found = objects([1, 1, 5, 5], [2, 2, 5, 5], shapes=[SQUARE, None])
    assert flaw(found, SIZE, masks=False) == ""
    assert "it has objects without a shape" in flaw(found, SIZE, masks=True)
    assert "without a shape" in flaw(found._replace(shapes=None), SIZE, masks=True)


def test_objects_to_learn_from() -> None:
    """Cut at the border; no crowd, and no box of at most 1 pixel in a direction, also after the cut."""
    boxes = [25.0, 1, 10, 5], [1.0, 1, 1, 5], [4.0, 4, 5, 5], [29.5, 4, 5, 5], [6.0, 6, 5, 5]
    counts = Counter[str]()
    shapes = [[[n]] for n in range(5)]
    found = learnable(objects(*boxes, crowd=(False, False, True, False, False), shapes=shapes), SIZE, counts)
    assert found.boxes.tolist() == [[25, 1, 30, 6], [6, 6, 11, 11]]
    assert found.shapes == [[[0]], [[4]]]
    assert counts == {"cut": 2, "crowds": 1, "thin": 2}


def test_masks() -> None:
    """A polygon, runs and compressed runs of one square give one mask; two polygons give both."""
    square = torch.zeros(SIZE, dtype=torch.uint8)
    square[2:8, 2:8] = 1
    runs = [2 * 20 + 2] + [6, 14] * 5 + [6]
    plain = {"size": list(SIZE), "counts": [*runs, 600 - sum(runs)]}
    from faster_coco_eval.core import mask

    packed = mask.encode(torch.asarray(square).numpy().copy(order="F"))
    text = {"size": list(SIZE), "counts": packed["counts"].decode()}
    for found in masks_of([SQUARE, plain, text], SIZE):
        assert torch.equal(found, square)
    both = masks_of([[*SQUARE, [20, 10, 25, 10, 25, 15, 20, 15]]], SIZE)[0]
    assert int(both.sum()) == 36 + 25
    assert masks_of([], SIZE).shape == (0, *SIZE)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"size": [30, 20], "counts": [600]}, r"size \[30, 20\]; expected \[20, 30\], height and width"),
        ({"size": [20, 30], "counts": [10]}, "have 10 pixels; expected 600"),
        ([[1, 2, 3, 4]], "expected polygons of at least 3 points, or runs"),
        (7, "a shape is 7"),
    ],
)
def test_shapes_of_another_form(shape: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        masks_of([shape], SIZE)
