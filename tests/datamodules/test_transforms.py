"""Resizing by hand, and the augmentations."""

from typing import Any

import numpy as np
import pytest
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


def test_resize_of_tensorflow_by_hand() -> None:
    """tf.image.resize of 50 x 31 to 16 x 16: half-pixel centres, two neighbours in each direction, no antialiasing."""
    image = picture(1, 50, 31)
    pixels = np.array(image).astype(np.float64)

    def neighbours(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = (np.arange(16) + 0.5) * size / 16 - 0.5
        first = np.floor(place).astype(int)
        return first.clip(0, size - 1), (first + 1).clip(0, size - 1), place - first

    top, bottom, down = neighbours(31)
    left, right, across = neighbours(50)
    rows = pixels[top] * (1 - down)[:, None, None] + pixels[bottom] * down[:, None, None]
    expected = rows[:, left] * (1 - across)[:, None] + rows[:, right] * across[:, None]
    found = Listed(resize="tensorflow", interpolation="bilinear").to_pixels(image).permute(1, 2, 0).double()
    assert float((found - torch.from_numpy(expected)).abs().max()) <= 0.5 + 1e-3  # rounded to whole values
    smooth = Listed(resize="direct", interpolation="bilinear").to_pixels(image).permute(1, 2, 0).double()
    assert float((smooth - found).abs().max()) > 5


def test_crop_of_a_squashed_image() -> None:
    """SPT on FGVC: all of the image becomes a square of 8/7 of the side, then a random part of it is cut out."""
    resize: Any = Listed(augmentation="crop", resize="square_crop").augment.transforms[0]  # type: ignore[union-attr]
    assert list(resize.size) == [18, 18]
    assert list(Listed(augmentation="crop").augment.transforms[0].size) == [18]  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(("fill", "colour"), [("imagenet", (124, 116, 104)), ("grey", (128, 128, 128))])
@pytest.mark.parametrize("drawn", ["same", "random"])
def test_colour_and_filter_of_randaugment(fill: Any, colour: tuple[int, ...], drawn: Any) -> None:
    """timm 0.6.5, data/transforms_factory.py l.96: the colour is the mean of the normalisation."""
    transform: Any = Listed(augmentation="randaug", augmentation_filter=drawn, randaug_fill=fill).augment
    crop, _, policy, *_ = transform.transforms
    both = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    assert {op.kwargs["fillcolor"] for op in policy.ops} == {colour}
    assert {op.kwargs["resample"] for op in policy.ops} == {both if drawn == "random" else both[1]}
    drawn_from = crop.interpolation if isinstance(crop.interpolation, tuple) else (crop.interpolation,)
    assert [filter.value for filter in drawn_from] == (["bilinear", "bicubic"] if drawn == "random" else ["bicubic"])


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
