"""Transforms of clips (T, C, H, W), uint8. A random change is the same for all frames of a clip."""

import random
from typing import Literal

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as vision

from datamodules.transforms import Size

TrainCrop = Literal["none", "jitter", "rrc"]
LARGEST = 1.15  # of ``jitter``: largest size of a resized frame, in sizes of the crop
RANDAUGMENT = "rand-m7-n4-mstd0.5-inc1"


def covering(clip: Tensor, size: Size, filter: InterpolationMode, antialias: bool) -> Tensor:
    """Clip in the smallest size with its aspect that covers (H, W), with sides rounded down."""
    height, width = clip.shape[-2:]
    if height * size[1] < width * size[0]:
        new = [size[0], width * size[0] // height]
    else:
        new = [height * size[1] // width, size[1]]
    # floats, because torch rounds bicubic values of uint8 pixels down
    return pixels(vision.resize(clip.float(), new, filter, antialias=antialias))


def pixels(floats: Tensor) -> Tensor:
    """uint8 pixels nearest to floats."""
    return floats.round().clamp(0, 255).to(torch.uint8)


def crops(clip: Tensor, size: Size, count: int) -> list[Tensor]:
    """Crops (T, C, H, W) of a clip that covers the size.

    Args:
        clip: The clip.
        size: Height and width of a crop.
        count: 1 for the centre; 3 for the start, the middle and the end of the longer side.
    """
    rows, columns = clip.shape[-2] - size[0], clip.shape[-1] - size[1]
    places = [(rows // 2, columns // 2)]
    if count == 3:
        places = [(rows * share // 2, columns * share // 2) for share in (0, 1, 2)]
    return [clip[..., top : top + size[0], left : left + size[1]] for top, left in places]


class ResizedCrop(v2.RandomResizedCrop):
    """Random part of the frames, resized to the crop."""

    def forward(self, clip: Tensor) -> Tensor:
        return pixels(super().forward(clip.float()))


class JitteredCrop(v2.Transform):
    """Random size of 1 to ``LARGEST`` times the crop, then a crop at a random place.

    Args:
        size: Height and width of the crop.
        filter: Interpolation of the resizing.
        antialias: Whether the resizing averages over the pixels that it leaves out.
    """

    def __init__(self, size: Size, filter: InterpolationMode, antialias: bool) -> None:
        super().__init__()
        self.size, self.filter, self.antialias = size, filter, antialias
        self.crop = v2.RandomCrop(size)

    def forward(self, clip: Tensor) -> Tensor:
        factor = float(torch.empty(()).uniform_(1, LARGEST))
        larger = round(self.size[0] * factor), round(self.size[1] * factor)
        return self.crop(covering(clip, larger, self.filter, self.antialias))


class ClipRandAugment(v2.Transform):
    """RandAugment with four operations of magnitude 7. None of them mirrors, so that left stays left."""

    def forward(self, clip: Tensor) -> Tensor:
        settings = {"translate_const": int(0.45 * min(clip.shape[-2:])), "interpolation": Image.Resampling.BICUBIC}
        augment = rand_augment_transform(RANDAUGMENT, settings)
        states = random.getstate(), np.random.get_state()
        frames = []
        for frame in clip:
            # the same random numbers for each frame
            random.setstate(states[0])
            np.random.set_state(states[1])
            frames.append(vision.pil_to_tensor(augment(vision.to_pil_image(frame))))
        return torch.stack(frames)


def training_transform(
    crop: TrainCrop, randaugment: bool, flip: bool, size: Size, filter: InterpolationMode, antialias: bool
) -> v2.Transform:
    """Transform from the frames of a video (T, 3, h, w) to a training clip (T, 3, H, W).

    Args:
        crop: ``jitter`` or ``rrc``.
        randaugment: Whether RandAugment changes the whole frames before.
        flip: Whether half of the clips are mirrored.
        size: Height and width of the clip.
        filter: Interpolation of the resizing.
        antialias: Whether the resizing averages over the pixels that it leaves out.
    """
    steps: list[v2.Transform] = [ClipRandAugment()] if randaugment else []
    if crop == "jitter":
        steps.append(JitteredCrop(size, filter, antialias))
    else:
        steps.append(ResizedCrop(size, interpolation=filter, antialias=antialias))
    return v2.Compose([*steps, *([v2.RandomHorizontalFlip()] if flip else [])])
