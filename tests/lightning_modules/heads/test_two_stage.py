"""Detectors of two stages."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN

from lightning_modules.heads.two_stage import TwoStage

STRIDES = [4, 8, 16, 32, 64]


def maps(count: int = 1) -> list[torch.Tensor]:
    return [torch.randn(count, 8, max(16 // 2**level, 1), max(16 // 2**level, 1)) for level in range(5)]


def test_settings_are_those_of_torchvision() -> None:
    """Thresholds, numbers of samples and shapes of weights of the default Mask R-CNN."""
    body: Any = nn.Identity()
    body.out_channels = 256
    with torch.device("meta"):
        ours, theirs = TwoStage("mask_rcnn", 90, STRIDES), MaskRCNN(body, 91)
    shapes = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    expected = theirs.state_dict().items()
    assert shapes == {name: tuple(value.shape) for name, value in expected if not name.startswith("backbone")}
    for part in ("rpn", "roi_heads"):
        one, other = vars(getattr(ours, part)), vars(getattr(theirs, part))
        plain = {
            name: value for name, value in other.items() if isinstance(value, (int, float, dict)) and name[0] != "_"
        }
        assert {name: one[name] for name in plain} == plain
        for name in ("fg_bg_sampler", "proposal_matcher", "box_coder"):
            assert vars(one[name]) == vars(other[name])
    assert ours.rpn._pre_nms_top_n == {"training": 2000, "testing": 1000} == ours.rpn._post_nms_top_n
    assert theirs.rpn._pre_nms_top_n == theirs.rpn._post_nms_top_n == ours.rpn._pre_nms_top_n


@pytest.mark.parametrize("head", ["faster_rcnn", "cascade_mask_rcnn"])
def test_images_without_objects(head: Any) -> None:
    """The losses are finite, and every weight has a gradient, so that plain DDP works."""
    torch.manual_seed(0)
    detector = TwoStage(head, 2, STRIDES, 8, (8, 16, 32, 64, 128), 8, 8, 8).train()
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.long),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }
    losses = detector(maps(2), [(64, 64)] * 2, [empty, empty])[1]
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is not None for parameter in detector.parameters())


def test_objectness() -> None:
    """Two logits for each anchor: their softmax is the sigmoid of the proposal layer's scores."""
    detector, x = TwoStage("faster_rcnn", 2, STRIDES, 8, box_channels=8), maps()
    logits = detector.objectness(x)
    assert logits.shape == (1, 2, 3 * sum(part.shape[2] * part.shape[3] for part in x))
    scores = torch.cat([part.flatten(1) for part in detector.rpn.head(x)[0]], dim=1)
    torch.testing.assert_close(logits.softmax(1)[:, 1], scores.sigmoid())
