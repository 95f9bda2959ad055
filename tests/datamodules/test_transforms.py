"""Resizing by hand, and the augmentations."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.support.pictures import Listed, picture


def test_resize_direct_by_hand() -> None:
    image = picture(1, 50, 31)
    expected = torch.from_numpy(np.array(image.resize((16, 16), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    assert torch.equal(Listed(resize="direct").to_pixels(image), expected)


def test_resize_center_crop_by_hand() -> None:
    image = picture(1, 50, 31)  # the short side becomes 16 / 0.8 = 20, the long one 32
    resized = image.resize((32, 20), Image.Resampling.BICUBIC).crop((8, 2, 24, 18))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    assert torch.equal(Listed(resize="center_crop").to_pixels(image), expected)


def test_resize_square_crop_by_hand() -> None:
    image = picture(1, 50, 31)
    resized = image.resize((18, 18), Image.Resampling.BILINEAR).crop((1, 1, 17, 17))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    module = Listed(resize="square_crop", crop_pct=0.85, interpolation="bilinear")  # 16 / 0.85 = 18.8
    assert torch.equal(module.to_pixels(image), expected)


def test_strongest_draw_of_randaugment() -> None:
    """A magnitude is drawn around 9; one that is cut off at 10 asks to posterize to no bits at all."""
    transform: Any = Listed(augmentation="randaug").augment
    (policy,) = (part for part in transform.transforms if hasattr(part, "ops"))
    assert any("Posterize" in op.name for op in policy.ops)
    for op in policy.ops:
        op.prob, op.magnitude = 1.0, 99
        assert op(picture(0)).size == (24, 20)


def test_augmentation_resizes_as_the_backbone_wants() -> None:
    for augmentation in ("crop", "rrc", "randaug", "flip_randaug"):
        resize: Any = Listed(augmentation=augmentation).augment.transforms[0]  # type: ignore[union-attr,arg-type]
        assert resize.interpolation.value == "bicubic", augmentation
    assert list(resize.size) == [16, 16], "flip_randaug squashes the whole image"
