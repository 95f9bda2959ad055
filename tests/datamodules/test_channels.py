"""Numbers of channels: the form of images, and refusals by header."""

from typing import Any

import pytest
import torch
from PIL import Image

from datamodules.channels import per_channel
from tests.support.pictures import INPUT, Bytes, Listed, encode, picture


def configured(channels: int, **options: Any) -> Listed:
    module = Listed(**options)
    module.configure(INPUT | {"input_size": (channels, 16, 16)})
    return module


def test_mean_of_other_channels_is_the_average() -> None:
    assert per_channel((0.1, 0.2, 0.3), 3).flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert per_channel((0.1, 0.2, 0.3), 4).flatten().tolist() == pytest.approx([0.2] * 4)


@pytest.mark.parametrize("augmentation", ["none", "pad_crop", "crop", "rrc", "randaug", "flip_randaug"])
def test_grey_images_of_every_augmentation(augmentation: Any) -> None:
    module = configured(1, augmentation=augmentation)
    dataset = module.dataset("train", Bytes([encode(picture(0))] * 32, [0] * 32))
    assert dataset[0][0].shape == (1, 16, 16)
    assert dataset[0][0].dtype is torch.uint8


def test_grey_pixels_and_views() -> None:
    module = configured(1, resize="direct")
    sample = Bytes([encode(Image.new("RGB", (9, 9), (255, 0, 0)))], [0])[0]
    assert module.item(sample)[0].unique().tolist() == [76]
    assert module.view(sample)[0].shape == (1, 16, 16)


@pytest.mark.parametrize("augmentation", ["none", "pad_crop", "crop", "rrc"])
def test_alpha_is_the_fourth_channel(augmentation: Any) -> None:
    module = configured(4, augmentation=augmentation)
    files = [encode(Image.new("RGBA", (20, 20), (10, 20, 30, 40)))] * 32
    pixels = module.dataset("train", Bytes(files, [0] * 32))[0][0]
    assert pixels.amax((1, 2)).tolist() == pytest.approx([10, 20, 30, 40], abs=3)  # Pillow weights colours by alpha


def test_alpha_that_no_image_has() -> None:
    files = [encode(picture(0)), b"unreadable in the middle"]
    with pytest.raises(ValueError, match=r"in_chans=4: image 0 and others of the test split have no alpha"):
        configured(4).dataset("test", Bytes(files[:1], [0]))
    with pytest.raises(ValueError, match="image 1"):  # the unreadable image is the news, not the channels
        configured(4).dataset("test", Bytes(files, [0, 1]))


@pytest.mark.parametrize("channels", [2, 5])
def test_channels_without_a_form(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"in_chans={channels}: .*Pass --model.backbone_args.in_chans 1, 3 or 4"):
        configured(channels)


def test_colours_with_alpha() -> None:
    with pytest.raises(ValueError, match="augmentation=randaug with in_chans=4"):
        configured(4, augmentation="randaug")
    with pytest.raises(TypeError, match="in_chans=4: random views"):
        configured(4).view(Bytes([encode(picture(0, mode="RGBA"))], [0])[0])
