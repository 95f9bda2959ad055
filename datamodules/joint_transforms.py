"""Transforms of an image together with its mask, as ADE20K is trained on in mmsegmentation, or with its objects."""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

IGNORED = 255  # label of pixels without a class
MOST = 0.75  # share of a crop that one class may cover
DRAWS = 10  # crops that are drawn until one is accepted
LONGEST = 4  # long side of a resized image in short sides, at most

Size = tuple[int, int]  # height and width in pixels, (H, W)


def covering_size(size: Size, short: float) -> Size:
    """Size of a resized image with its aspect: its short side is ``short``, or less where the long one is too long.

    Args:
        size: Height and width of the image.
        short: Pixels of the short side; the long side has at most 4 times as many.
    """
    factor = min(LONGEST * short / max(size), short / min(size))
    return max(int(size[0] * factor + 0.5), 1), max(int(size[1] * factor + 0.5), 1)


class RandomScale(v2.Transform):
    """Resize by a random factor; masks by the nearest neighbour.

    Args:
        short: Pixels of the short side at the factor 1; see ``covering_size``.
        low: Smallest factor.
        high: Largest factor.
    """

    def __init__(self, short: int, low: float, high: float) -> None:
        super().__init__()
        self.short, self.low, self.high = short, low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        factor = float(torch.empty(1).uniform_(self.low, self.high))
        return {"size": list(covering_size((height, width), factor * self.short))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return vision.resize(inpt, params["size"], v2.InterpolationMode.BILINEAR)


class VariedCrop(v2.RandomCrop):
    """Random crop, drawn anew while one class covers more than 75 % of its labelled pixels.

    Args:
        size: Height and width of the crop.
        colour: Colour of padded pixels, uint8; the mean of the normalisation. Their label is ``IGNORED``.
    """

    def __init__(self, size: Size, colour: list[int]) -> None:
        fill: Any = {tv_tensors.Image: colour, tv_tensors.Mask: IGNORED}
        super().__init__(size, pad_if_needed=True, fill=fill)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = next(part for part in flat_inputs if isinstance(part, tv_tensors.Mask))
        for _ in range(DRAWS):
            params = super().make_params(flat_inputs)
            if is_varied(self.transform(mask, params)):
                break
        return params


def is_varied(labels: Tensor) -> bool:
    """Whether no class covers more than 75 % of the labelled pixels."""
    counts = labels.flatten().long().bincount(minlength=IGNORED + 1)[:IGNORED]
    return int(counts.max()) <= MOST * int(counts.sum()) and bool(counts.any())


def training_transform(size: Size, scales: list[float] | None, colour: list[int], photometric: bool) -> v2.Transform:
    """Random size, crop, mirror image and, if wanted, random colours.

    Args:
        size: Height and width of a crop.
        scales: Smallest and largest factor of the size; None for no crop, but the whole image without its aspect.
        colour: Colour of padded pixels, uint8.
        photometric: Whether brightness, contrast, saturation and hue change, each for half of the images. Brightness is
            multiplied, where mmsegmentation adds up to 32 of 255.
    """
    jitters = {"brightness": (1 - 32 / 256, 1 + 32 / 256), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5)}
    changes: Any = [v2.ColorJitter(**{name: value}) for name, value in (jitters | {"hue": (-0.1, 0.1)}).items()]
    colours = [v2.RandomApply([change], p=0.5) for change in changes] if photometric else []
    place = [v2.Resize(size)] if scales is None else [RandomScale(min(size), *scales), VariedCrop(size, colour)]
    return v2.Compose([*place, v2.RandomHorizontalFlip(), *colours])


def centre_crop(size: Size, colour: list[int]) -> v2.Transform:
    """Crop of the centre, padded where the image is smaller."""
    fill: Any = {tv_tensors.Image: colour, tv_tensors.Mask: IGNORED}
    return v2.Compose([RandomScale(min(size), 1.0, 1.0), CentredCrop(size, fill)])


class CentredCrop(v2.Transform):
    """Crop of the centre.

    Args:
        size: Height and width of the crop.
        fill: Value of padded pixels by the class of the input.
    """

    def __init__(self, size: Size, fill: dict[Any, Any]) -> None:
        super().__init__()
        self.size, self.fill = size, fill

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = inpt.shape[-2:]
        more = [max(self.size[1] - width, 0), max(self.size[0] - height, 0)]
        left, top = more[0] // 2, more[1] // 2
        padded = vision.pad(inpt, [left, top, more[0] - left, more[1] - top], fill=self.fill[type(inpt)])
        return vision.center_crop(padded, list(self.size))


def object_transform(
    short_sides: list[int], long_side: int, flip: bool, jitter: list[float] | None, colour: list[int]
) -> v2.Transform:
    """Random size and mirror image of an image with boxes, their labels and masks; boxes of 1 pixel are left out.

    Args:
        short_sides: Pixels of the short side, of which one is drawn.
        long_side: Pixels of the long side, at most; side of the square with ``jitter``.
        flip: Whether half of the images are mirrored.
        jitter: Smallest and largest factor of the size at which an image fits into the square; None for no square.
        colour: Colour of padded pixels, uint8.
    """
    place: list[v2.Transform] = [v2.RandomShortestSize(short_sides, long_side)]
    if jitter is not None:
        square, fill = (long_side, long_side), {tv_tensors.Image: colour, tv_tensors.Mask: 0}
        low, high = jitter
        place = [v2.ScaleJitter(square, (low, high)), v2.RandomCrop(square, pad_if_needed=True, fill=fill)]
    mirror = [v2.RandomHorizontalFlip()] if flip else []
    # without the clamp a box at the border would be left out, because its resized coordinate may round beyond it
    return v2.Compose([*place, *mirror, v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()])
