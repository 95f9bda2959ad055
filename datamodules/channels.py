"""Channels of images: grey, RGB, or RGB and alpha, as many as the backbone reads."""

from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.samples import ImageSamples
from datamodules.transforms import OF_COLOURS

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # mode of Pillow by the number of channels
LOOKED_AT = 16  # images of a split whose headers tell whether there is alpha


def per_channel(values: Sequence[float], channels: int) -> Tensor:
    """Mean or std of each channel (C, 1, 1); the average of those of RGB for another number of channels, as in timm."""
    if len(values) != channels:
        values = (sum(values) / len(values),) * channels
    return torch.tensor(values).view(channels, 1, 1)


def check_channels(channels: int, augmentation: str) -> None:
    """Refuse numbers of channels for which images have no form, or the augmentation has none.

    Raises:
        ValueError: With the number and the possible ones.
    """
    if channels not in MODES:
        raise ValueError(
            f"in_chans={channels}: images are read as 1 channel (grey), 3 (RGB) or 4 (RGB and alpha). Pass "
            "--model.backbone_args.in_chans 1, 3 or 4"
        )
    if channels == 4 and augmentation in OF_COLOURS:
        raise ValueError(
            f"augmentation={augmentation} with in_chans=4: RandAugment reads images without alpha only. Pass "
            "--data.augmentation crop, rrc or pad_crop"
        )


def check_alpha(split: str, samples: ImageSamples, channels: int) -> None:
    """Refuse a split without alpha if the backbone reads it; of the first images, the headers alone are read.

    Raises:
        ValueError: With the name of the split and of its first image.
    """
    if channels == 4 and not any(has_alpha(samples, index) for index in range(min(len(samples), LOOKED_AT))):
        raise ValueError(
            f"in_chans=4: {samples.name(0)} and others of the {split} split have no alpha channel. Leave out "
            "--model.backbone_args.in_chans, or pass 1 or 3"
        )


def has_alpha(samples: ImageSamples, index: int) -> bool:
    """Whether an image has alpha by its header; also for an unreadable one, which has a message of its own."""
    try:
        with samples.open(index) as image:
            return image.has_transparency_data
    except (OSError, ValueError):
        return True
