"""Sliding windows: outputs of a model for images larger than those it was trained on."""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.heads.layers import resized

Size = tuple[int, int]  # height and width in pixels, (H, W)
MOST = 16  # windows in one pass of the model


def window_ends(length: int, window: int, stride: int) -> list[int]:
    """Ends of the windows along a side; the last window ends with the image.

    Args:
        length: Pixels of the side.
        window: Pixels of a window.
        stride: Pixels between two windows.
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(index * stride + window, length) for index in range(count)]


def slide(model: Callable[[Tensor], Tensor], images: Tensor, window: Size, stride: Size) -> Tensor:
    """Mean of the logits of all windows over a pixel, (B, K, H, W), for images (B, C, H, W).

    The windows of an image are neighbours in the batches of the model. An image that is smaller than a window is padded
    with zeros at its right and lower edge, and the logits are cut to its size.

    Args:
        model: Function from windows (N, C, h, w) to logits (N, K, ., .), which are resized to the windows.
        images: Normalised images, so that 0 is the mean colour.
        window: Height and width of a window in pixels.
        stride: Rows and columns between two windows.
    """
    height, width = images.shape[2:]
    images = F.pad(images, (0, max(window[1] - width, 0), 0, max(window[0] - height, 0)))
    sides = zip(images.shape[2:], window, stride, strict=True)
    ends = list(product(*(window_ends(*side) for side in sides)))
    places = [(slice(y - window[0], y), slice(x - window[1], x)) for y, x in ends]
    crops = torch.stack([images[:, :, rows, columns] for rows, columns in places], dim=1).flatten(0, 1)
    logits = torch.cat([resized(model(part), torch.Size(window)) for part in crops.split(MOST)])
    if len(places) == 1:
        return logits[:, :, :height, :width]
    logits = logits.unflatten(0, (len(images), len(places))).float()
    sums = logits.new_zeros(len(images), logits.shape[2], *images.shape[2:])
    counts = logits.new_zeros(images.shape[2:])
    for index, (rows, columns) in enumerate(places):
        sums[:, :, rows, columns] += logits[:, index]
        counts[rows, columns] += 1
    return (sums / counts)[:, :, :height, :width]


def multi_scale(
    model: Callable[[Tensor], Tensor], images: Tensor, window: Size, stride: Size, scales: list[float], flip: bool
) -> Tensor:
    """Logs of the mean of class probabilities (B, K, H, W) over several sizes of images (B, C, H, W).

    For the images as they are, without a mirror, the result is that of ``slide``.

    Args:
        model: See ``slide``.
        images: See ``slide``.
        window: See ``slide``.
        stride: See ``slide``.
        scales: Factors of the sides of the images.
        flip: Whether each size is also seen in a mirror.
    """
    if scales == [1.0] and not flip:
        return slide(model, images, window, stride)
    size, total = images.shape[2:], None
    for scale, mirrored in product(scales, (False, True) if flip else (False,)):
        sides = [max(round(scale * side), 1) for side in size]
        x = images if scale == 1 else F.interpolate(images, sides, mode="bilinear", antialias=True)
        logits = slide(model, x.flip(3) if mirrored else x, window, stride)
        logits = resized(logits.flip(3) if mirrored else logits, size)
        shares = logits.float().softmax(1)
        total = shares if total is None else total + shares
    assert total is not None
    return (total / (len(scales) * (2 if flip else 1))).log()
