"""Ways of an image to pixels: resizing as the published codes do it, augmentations, and random views."""

from typing import Literal

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as vision

Resize = Literal["direct", "center_crop", "square_crop"]
Augmentation = Literal["none", "pad_crop", "crop", "rrc", "randaug", "flip_randaug"]
OF_STORED_IMAGES = ("crop", "rrc", "randaug", "flip_randaug")  # augmentations that resize by themselves


def resized(image: Image.Image, size: int, resize: Resize, crop_pct: float, filter: InterpolationMode) -> Tensor:
    """uint8 pixels (3, S, S) of an RGB image, resized by PIL because the published codes do so.

    Args:
        image: RGB image of any size.
        size: Side of the square in pixels, S.
        resize: ``direct`` squashes to the square, ``center_crop`` keeps the aspect, ``square_crop`` squashes to a
            larger square; the latter two crop the centre.
        crop_pct: Share of the resized side that a crop keeps.
        filter: Interpolation of the resizing.
    """
    if resize == "direct":
        image = vision.resize(image, [size, size], filter)
    else:
        side = int(size / crop_pct)  # rounded down, as timm does: 248 for 224 at 0.9
        whole = [side] if resize == "center_crop" else [side, side]
        image = vision.center_crop(vision.resize(image, whole, filter), [size, size])
    return vision.pil_to_tensor(image)


def of_pixels(size: int) -> v2.Transform:
    """Augmentation ``pad_crop`` of uint8 pixels (3, S, S), and of a target of the same geometry if there is one."""
    crop = v2.RandomCrop(size, padding=size // 8, padding_mode="reflect")
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def of_stored_images(augmentation: Augmentation, size: int, filter: InterpolationMode) -> v2.Transform:
    """Augmentation of images as stored, from PIL to uint8 pixels (3, S, S).

    Args:
        augmentation: One of ``OF_STORED_IMAGES``.
        size: Side of the square in pixels, S.
        filter: Interpolation of the resizing.
    """
    if augmentation == "crop":
        resize = v2.Resize(round(size * 8 / 7), filter)
        return v2.Compose([resize, v2.RandomCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    transform = create_transform(
        size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1" if augmentation.endswith("randaug") else None,
        color_jitter=0.0,
        interpolation=filter.value,
        use_prefetcher=True,  # leaves out the conversion to floats, which follows on the device
    )
    for op in (op for part in transform.transforms for op in getattr(part, "ops", [])):
        op.magnitude_max = 9.99  # at 10 posterize keeps no bit of a pixel: a black image, which Pillow 13 refuses
    if augmentation == "flip_randaug":
        transform.transforms[0] = v2.Resize([size, size], filter)
    return v2.Compose([*transform.transforms, torch.as_tensor])


def random_view(size: int, filter: InterpolationMode) -> v2.Transform:
    """Random view as contrastive losses compare them, from PIL to uint8 pixels (3, S, S)."""
    crop = v2.RandomResizedCrop(size, interpolation=filter)
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.2), v2.PILToTensor()])
