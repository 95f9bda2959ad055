"""Ways of an image to pixels: resizing as the published codes do it, augmentations, and random views."""

from typing import Literal

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, create_transform
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as vision

Resize = Literal["direct", "tensorflow", "center_crop", "square_crop"]
Augmentation = Literal["none", "pad_crop", "crop", "rrc", "randaug", "flip_randaug"]
OF_STORED_IMAGES = ("crop", "rrc", "randaug", "flip_randaug")  # augmentations that resize by themselves
OF_COLOURS = ("randaug", "flip_randaug")  # augmentations that need images in RGB
FILLS = {"imagenet": IMAGENET_DEFAULT_MEAN, "grey": (0.5, 0.5, 0.5)}  # colours of RandAugment's borders, from 0 to 1

Size = tuple[int, int]  # height and width in pixels, (H, W)


def covering(size: Size, filter: InterpolationMode) -> v2.Transform | ResizeKeepRatio:
    """Resizing that keeps the aspect, to the smallest image that covers (H, W), as timm evaluates."""
    if size[0] == size[1]:
        return v2.Resize(size[0], filter)
    return ResizeKeepRatio(size, interpolation=filter.value)


def resized(image: Image.Image, size: Size, resize: Resize, crop_pct: float, filter: InterpolationMode) -> Tensor:
    """uint8 pixels (C, H, W) of an image, resized by PIL because most published codes do so.

    Args:
        image: Image of any size.
        size: Height and width of the result in pixels.
        resize: ``direct`` squashes to the size, ``tensorflow`` too, but without antialiasing. ``center_crop`` keeps the
            aspect, ``square_crop`` squashes to a larger size of the same aspect; the latter two crop the centre.
        crop_pct: Share of the resized sides that a crop keeps.
        filter: Interpolation of the resizing.
    """
    if resize == "tensorflow":
        # floats, because torchvision rounds uint8 pixels once for each direction
        floats = vision.resize(vision.pil_to_tensor(image).float(), list(size), filter, antialias=False)
        return floats.round().clamp(0, 255).to(torch.uint8)
    if resize == "direct":
        image = vision.resize(image, list(size), filter)
    else:
        whole = (int(size[0] / crop_pct), int(size[1] / crop_pct))  # rounded down, as timm does: 248 for 224 at 0.9
        larger = covering(whole, filter) if resize == "center_crop" else v2.Resize(whole, filter)
        image = vision.center_crop(larger(image), list(size))
    return vision.pil_to_tensor(image)


def of_pixels(size: Size) -> v2.Transform:
    """Augmentation ``pad_crop`` of uint8 pixels (C, H, W), and of a target of the same geometry if there is one."""
    crop = v2.RandomCrop(size, padding=[size[1] // 8, size[0] // 8], padding_mode="reflect")
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def of_stored_images(
    augmentation: Augmentation,
    size: Size,
    filter: InterpolationMode,
    random_filter: bool = False,
    fill: str = "imagenet",
    squash: bool = False,
) -> v2.Transform:
    """Augmentation of images as stored, from PIL to uint8 pixels (C, H, W).

    Args:
        augmentation: One of ``OF_STORED_IMAGES``.
        size: Height and width of the result in pixels.
        filter: Interpolation of the resizing.
        random_filter: Whether timm draws bilinear or bicubic for each image instead, except in ``crop``.
        fill: Colour of RandAugment's borders, a key of ``FILLS``.
        squash: Whether ``crop`` squashes the image to its larger size instead of keeping the aspect.
    """
    if augmentation == "crop":
        whole = (round(size[0] * 8 / 7), round(size[1] * 8 / 7))
        resize = v2.Resize(whole, filter) if squash else covering(whole, filter)
        return v2.Compose([resize, v2.RandomCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    transform = create_transform(
        size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1" if augmentation.endswith("randaug") else None,
        color_jitter=0.0,
        interpolation="random" if random_filter else filter.value,
        mean=FILLS[fill],
        use_prefetcher=True,  # leaves out the conversion to floats, which follows on the device
    )
    for op in (op for part in transform.transforms for op in getattr(part, "ops", [])):
        op.magnitude_max = 9.99  # at 10 posterize keeps no bit of a pixel: a black image, which Pillow 13 refuses
    if augmentation == "flip_randaug":
        transform.transforms[0] = v2.Resize(list(size), filter)
    return v2.Compose([*transform.transforms, torch.as_tensor])


def random_view(size: Size, filter: InterpolationMode) -> v2.Transform:
    """Random view as contrastive losses compare them, from a PIL image in RGB to uint8 pixels (3, H, W)."""
    crop = v2.RandomResizedCrop(size, interpolation=filter)
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.2), v2.PILToTensor()])
