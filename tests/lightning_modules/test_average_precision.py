"""Average precision of boxes and masks."""

import sys
from typing import Any

import pytest
import torch
from torch import distributed

from lightning_modules.average_precision import AveragePrecision
from tests.support.ranks import TwoRanks


def image(number: int, shift: float = 0.0, masks: bool = True) -> dict[str, Any]:
    """Two objects of 20 x 20 pixels; ``shift`` moves them to the right."""
    left = torch.tensor([4.0, 40.0]) + number
    boxes = torch.stack([left + shift, left, left + 20 + shift, left + 20], dim=1)
    shapes = torch.zeros(2, 80, 80, dtype=torch.bool)
    for shape, (x, y, right, bottom) in zip(shapes, boxes.int().tolist(), strict=True):
        shape[y:bottom, x:right] = True
    found = {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.8 - 0.01 * number])}
    return found | ({"masks": shapes} if masks else {})


def test_truth_as_prediction() -> None:
    metric = AveragePrecision(masks=True)
    metric.update([image(0)], [image(0)])
    found = metric.compute()
    assert {name: float(value) for name, value in found.items()} == pytest.approx(dict.fromkeys(found, 1.0))
    ends = ("", "_50", "_75", "_small")  # no medium and no large object
    assert found.keys() == {f"{kind}_map{end}" for kind in ("box", "mask") for end in ends}


def test_overlaps() -> None:
    """Boxes that overlap by 16 of 24 columns, 0.67: right at 0.50, 0.55, 0.60 and 0.65, and wrong from 0.70 on."""
    metric = AveragePrecision(masks=False)
    metric.update([image(0, shift=4.0, masks=False)], [image(0, masks=False)])
    found = metric.compute()
    assert found["box_map"] == pytest.approx(0.4)
    assert (found["box_map_50"], found["box_map_75"]) == (1.0, 0.0)


def test_images_without_objects() -> None:
    """A box on an image without objects is a mistake; a crowd region is neither right nor wrong."""
    metric = AveragePrecision(masks=True)
    empty = {name: value[:0] for name, value in image(0).items()}
    metric.update([image(0), empty, image(1)], [image(0), empty, empty])
    assert 0 < float(metric.compute()["box_map"]) < 1.0001
    crowd = AveragePrecision(masks=True)
    crowd.update([image(0)] * 2, [image(0), image(0) | {"iscrowd": torch.ones(2, dtype=torch.long)}])
    assert float(crowd.compute()["box_map"]) == pytest.approx(1.0)


def share(rank: int, count: int) -> dict[str, float]:
    """Metric of two ranks with images 0, 2, ... and 1, 3, ... of ``count``."""
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    metric = AveragePrecision(masks=True)
    for number in range(rank, count, 2):
        metric.update([image(number, shift=2.0 * number)], [image(number)])
    return {name: float(value) for name, value in metric.compute().items()}


def test_unequal_ranks(two_ranks: TwoRanks) -> None:
    """Three images on two ranks give the numbers of one process, to the last bit."""
    alone = AveragePrecision(masks=True)
    for number in range(3):
        alone.update([image(number, shift=2.0 * number)], [image(number)])
    expected = {name: float(value) for name, value in alone.compute().items()}
    assert two_ranks(share, 3) == [expected, expected]


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    with pytest.raises(ValueError, match="pip install faster-coco-eval"):
        AveragePrecision(masks=False)
